# Definitions that the rules share: the study, the machine, and what makes Snakemake redo a job.

import re
import sys
from functools import cache
from itertools import product
from pathlib import Path
from shlex import quote

from snakemake.logging import logger
from snakemake.settings.enums import Quietness

from blocklora.engine.precisions import resolve_precision
from blocklora.errors import UserError
from blocklora.experiments import further_tests, items, measures
from blocklora.methods import METHODS
from blocklora.methods.low_rank import ADAPTER_FILE
from blocklora.performance.durations import UNITS, fit_units
from blocklora.provenance import code_digest
from blocklora.publish.catalogue import CLAIMS_NEED
from blocklora.publish.inputs import evidence_file
from blocklora.runs.gpu import resolve_device
from blocklora.runs.record import HISTORY, RECORD, why_missing
from blocklora.runs.status import what_is_missing
from blocklora.study import digests, places
from blocklora.study.config import read_configuration
from blocklora.study.study_files import find_study
from blocklora.study.study import load_study
from blocklora.study.run import Run, Test
from blocklora.theory.sources import unlisted_datasets


def load_configured_study():
    """Load the study that the configuration names, or end Snakemake with one message.

    The configuration is read here and not by `configfile`, which would silently take the last of
    two equal keys. The user's own images may be missing if there are finished runs.
    """
    given = workflow.config_settings
    files = ["config.yaml", *given.configfiles]
    try:
        config.update(read_configuration(files, given.config))
        path = find_study(config["study"], Path(workflow.basedir) / "studies")
        return load_study(path, images_needed=not Path("results", path.stem, "runs").is_dir())
    except UserError as error:
        raise SystemExit(f"{error}") from None


STUDY = load_configured_study()
# The texts of the report show these facts about the study.
config["title"] = STUDY.title
config["miniature"] = STUDY.miniature is not None
RESULTS = f"results/{STUDY.name}"
DEVICE = resolve_device(config["device"])
GPUS = 1 if DEVICE == "cuda" else 0
PRECISION = resolve_precision(config["precision"], DEVICE)
HOW = PRECISION, config["engine"]
# Threads that prepare batches while a GPU computes. A CPU computes with one thread, because the
# number of threads changes the order of sums and with it the last digits of results.
WORKERS = 4 if DEVICE == "cuda" else 0
# Everything computed from the runs depends on their content, not on when they were made.
RESULTS_DIGEST = digests.results_digest(STUDY, *HOW)
# The runs that share a job.
FIT_UNITS = fit_units(STUDY, DEVICE, config["job_hours"])
# No rule makes this file. A rule that needs it does not apply, so Snakemake takes another rule or
# the existing file.
NEVER = f"{RESULTS}/no-such-file"

if workflow.output_settings.dryrun and not workflow.output_settings.printshellcmds:
    # A dry run only counts the jobs of each rule, so that it fits on a page; --printshellcmds lists
    # them all.
    workflow.output_settings.quiet = {Quietness.RULES, Quietness.PROGRESS}

# Beginnings of Snakemake's messages about its own work, which would hide the progress of the jobs.
NOISE = "Select jobs to execute...", "Execute ", "Cannot restore "
logger.addFilter(lambda record: not record.getMessage().startswith(NOISE))


def say_what_is_missing():
    """Log how many runs are finished, and in words why the others have to be made."""
    logger.info(what_is_missing(STUDY, Path(RESULTS) / places.RUNS, *HOW))


def closed(names):
    """Return a wildcard constraint that allows only these values."""
    return "|".join(re.escape(str(name)) for name in names) or "(?!)"


def untracked(value):
    """Return a parameter that can change without redoing anything: it says how to compute.

    Snakemake does not record a parameter whose function has the argument `input`.
    """

    def parameter(wildcards, input):
        return value

    return parameter


def growing(megabytes):
    """Return a resource that grows with each attempt, since memory may have run out."""

    def resource(wildcards, attempt):
        return attempt * megabytes

    return resource


def of_dataset(digest):
    """Return a parameter with a digest that depends only on the study and the dataset."""

    def parameter(wildcards):
        return digest(STUDY, wildcards.dataset)

    return parameter


def backbone_digest(wildcards):
    return digests.backbone_digest(STUDY, wildcards.backbone)


def is_asked_for(*files):
    """Return True if the command line names one of these files, or a file below these folders."""
    asked = {Path(target) for target in workflow.dag_settings.targets}
    places = {Path(file.replace("<results>", RESULTS)) for file in files}
    return any(places & {target, *target.parents} for target in asked)


def is_everything_due():
    """Return True if rules apply even though their output exists.

    That is so if they are forced, and in jobs, reports and graphs.
    """
    settings = workflow.dag_settings
    forced = settings.forceall or settings.forcerun or settings.forcetargets
    return forced or not workflow.is_main_process or workflow.executor_plugin is None


def run_files(run, kind=None):
    """Return the files of a run. `kind` is the kind of its method if the name is a wildcard."""
    method = METHODS[kind or STUDY.methods[run.method].kind]
    names = [*method.files, HISTORY, RECORD] if method.trained else []
    left = [f"{run.folder}/{name}" for name in names]
    return [f"<results>/runs/{file}" for file in [*left, *(test.file for test in run.own_tests)]]


MEASURES = measures().values()
# The tables and figures of the study, described by the catalogue.
TABLES = [item for item in items(STUDY) if item.kind == "table"]
FIGURES = [item for item in items(STUDY) if item.kind == "figure"]


def publishing_code(module):
    """Return a digest of the code, published numbers and names behind a table or figure."""
    data = (
        *("publish/reference/*", "publish/templates/*", "publish/*.mplstyle"),
        "data/registry/*.yaml",
    )
    return code_digest(module, data=data)


def table_files(item):
    """Return the files of a table, of which the report shows the last one."""
    stem = f"<results>/tables/{item.name}"
    labels = {"item": f"table of {item.name}"}
    shown = report(f"{stem}.html", caption=caption(item), category=item.section, labels=labels)
    return [f"{stem}.csv", f"{stem}.md", f"{stem}.tex", shown]


def figure_files(item, backbone):
    """Return the files of a figure, of which the report shows the last one."""
    stem = f"<results>/figures/{backbone}/{item.name}"
    labels = {"item": f"figure of {item.name}, {backbone}"}
    shown = report(f"{stem}.png", caption=caption(item), category=item.section, labels=labels)
    return [f"{stem}.pdf", f"{stem}.csv", shown]


def caption(item):
    """Return the file with an item's text in the report, or None if there is none."""
    file = Path(workflow.basedir) / "workflow" / "report" / f"{item.entry}.rst"
    return str(file) if file.exists() else None


def own_csv(wildcards):
    """Return the CSV file that lists a dataset of the user's own, if there is one."""
    own = STUDY.own_datasets.get(wildcards.dataset)
    return str(own.csv) if own and own.csv else []


def verification_digest(wildcards, input):
    """Return the cache key of a verification. The argument `input` leaves it untracked."""
    return digests.verification_digest(STUDY, wildcards.dataset)


def of_lists(place):
    """Return the files of all shots lists of a dataset, those of the fewest shots first."""
    files = [place("{dataset}", shots, seed) for shots in STUDY.shots for seed in STUDY.seeds]
    return [f"<results>/{file}" for file in files]


def gpu_jobs():
    """Return how many jobs may compute on the GPUs of this machine at a time.

    In a batch system each job has a GPU of its own, whatever is allowed in all.
    """
    cores, gpus = (workflow.global_resources.get(name) for name in ("_cores", "gpu"))
    if not (GPUS and cores.value and workflow.local_exec and workflow.is_main_process):
        return 1
    most = cores.value // WORKERS
    return most if gpus is None or gpus.value is None else min(most, gpus.value)


def how_to_compute(wildcards, input):
    """Return the options of fits and tests that say how and where to compute."""
    options = {
        "study": STUDY.path,
        "results": RESULTS,
        "cache": config["cache"],
        "device": DEVICE,
        "workers": WORKERS,
        "precision": PRECISION,
        "engine": config["engine"],
    }
    if (jobs := gpu_jobs()) > 1:
        options["gpu-jobs"] = jobs
    if config["scratch"]:
        options["scratch"] = config["scratch"]
    return " ".join(f"--{name} {quote(str(value))}" for name, value in options.items())


def test_pixels(wildcards):
    """Return the store of test images at the input size of the backbone."""
    return pixels_of(wildcards.dataset, wildcards.backbone)


def tested_pixels(wildcards):
    return pixels_of(wildcards.tested, wildcards.backbone)


def pixels_of(dataset, backbone):
    return f"<results>/{places.test_pixels(dataset, STUDY.image_size(backbone))}"


def run_digests(run):
    """Return the digest of a run's fit and those of the tests on its own dataset."""
    tests = [digests.test_digest(STUDY, test, *HOW) for test in run.own_tests]
    return [digests.fit_digest(STUDY, run, *HOW), *tests]


def untrained_digests(wildcards):
    return run_digests(Run(wildcards.backbone, wildcards.dataset, wildcards.method, 0, 0))


def elsewhere_digest(wildcards):
    cell = wildcards.backbone, wildcards.dataset, wildcards.method
    run = Run(*cell, int(wildcards.shots), int(wildcards.seed))
    return digests.test_digest(STUDY, Test(run, wildcards.tested), *HOW)


def measure_inputs(measure, params):
    """Return a function for the input of a measure's rule, which decides whether the rule applies.

    The rule does not apply if its tables exist, unless Snakemake remembers that they were made with
    other parameters. Tables that were copied here therefore need none of the files behind them.
    """

    def inputs(wildcards):
        tables = workflow.get_rule(measure.name).output
        remembered = [workflow.persistence.params(table) for table in tables]
        changed = any(repr(params) not in known for known in remembered if known is not None)
        due = changed or is_everything_due() or is_asked_for(*tables)
        if not due and all(Path(table).exists() for table in tables):
            return NEVER
        return flatten(NEEDED_FILES[need] for need in measure.needs)

    return inputs


def measure_params(measure):
    """Return everything a measure depends on. The age of files redoes nothing."""
    return [
        list(measure.tables.values()),
        RESULTS_DIGEST if "runs" in measure.needs else STUDY.digest,
        code_digest(measure.compute, data=measure.data),
        PRECISION if measure.precise else "fp32",
    ]


def evidence(items):
    """Return the files that these tables or figures are made from."""
    return list(dict.fromkeys(f"<results>/{file}" for item in items for file in item.files(STUDY)))


def evidence_if_alone(item):
    """Return a function for the input of an item's own rule, which applies if it is a target."""

    def inputs(wildcards):
        alone = table_files(item) if item.kind == "table" else figure_files(item, *wildcards)
        return evidence([item]) if not workflow.is_main_process or is_asked_for(*alone) else NEVER

    return inputs
