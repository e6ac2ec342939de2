import sys
from pathlib import Path
from shlex import quote

from snakemake.utils import min_version

min_version("9.20")

# Jobs find `blocklora` beside the Python that runs Snakemake, even if its environment is not
# activated.
shell.prefix(f"set -euo pipefail; PATH=$PATH:{quote(str(Path(sys.executable).parent))}; ")


report: "workflow/report/workflow.rst"


include: "workflow/rules/common.smk"


if workflow.output_settings.dryrun:
    say_what_is_missing()


# Each study has a folder of its own for all its results.
pathvars:
    results=RESULTS,
    logs=f"{RESULTS}/logs",
    benchmarks=f"{RESULTS}/benchmarks",


wildcard_constraints:
    backbone=closed(STUDY.backbones),
    dataset=closed(STUDY.datasets),
    method=closed(STUDY.methods),
    shots=closed(STUDY.shots),
    seed=closed(STUDY.seeds),
    size=r"\d+",


include: "workflow/rules/data.smk"
include: "workflow/rules/backbone.smk"
include: "workflow/rules/fit_jobs.smk"
include: "workflow/rules/training.smk"
include: "workflow/rules/theory.smk"
include: "workflow/rules/publishing.smk"
include: "workflow/rules/targets.smk"


rule all:
    default_target: True
    input:
        rules.runs.input,
        rules.claims.output,
        rules.tables.output,
        rules.figures.output,
    message:
        f"All tables, figures and verdicts of the study {STUDY.name}"


onstart:
    if workflow.is_main_process:
        say_what_is_missing()


onsuccess:
    if workflow.is_main_process:
        print(f"Complete: {RESULTS}/claims.md, {RESULTS}/tables, {RESULTS}/figures")
