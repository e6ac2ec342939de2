# What the rules share: the study, the machine, and what makes a job be redone.

import re
import sys
from functools import cache
from itertools import product
from math import ceil
from pathlib import Path
from shlex import quote

from snakemake.logging import logger
from snakemake.settings.enums import Quietness

from blocklora.errors import UserError
from blocklora.experiments import further_tests, items, measures
from blocklora.methods import METHODS
from blocklora.methods.adapter import ADAPTER_FILE
from blocklora.performance.durations import UNITS, fit_units
from blocklora.provenance import code_digest
from blocklora.publish.catalogue import CLAIMS_NEED
from blocklora.publish.places import evidence_file
from blocklora.runs.record import HISTORY, RECORD, why_missing
from blocklora.runs.status import what_is_missing
from blocklora.study import digests, places
from blocklora.study.config import find_study, resolve_device
from blocklora.study.model import Run, Test, load_study
from blocklora.study.validation import check_config
from blocklora.theory.sources import unlisted_datasets


def load_configured_study():
    """Return the study of the configuration; end Snakemake with one message if either is wrong.

    The user's own images may be elsewhere if there are finished runs.
    """
    try:
        check_config(config, "config.yaml or --config")
        path = find_study(config["study"], Path(workflow.basedir) / "studies")
        return load_study(path, images_needed=not Path("results", path.stem, "runs").is_dir())
    except UserError as error:
        raise SystemExit(f"{error}") from None


STUDY = load_configured_study()
# What the texts of the report say of the study.
config["title"] = STUDY.title
config["miniature"] = STUDY.miniature is not None
RESULTS = f"results/{STUDY.name}"
DEVICE = resolve_device(config["device"])
GPUS = 1 if DEVICE == "cuda" else 0
HOW = config["precision"], config["engine"]
# Threads that prepare batches beside a GPU. A CPU computes with one thread: the number of threads
# changes the order of sums, and with it the last digits of results.
WORKERS = 4 if DEVICE == "cuda" else 0
# What is computed from the runs depends on them, not on when they were made.
RESULTS_DIGEST = digests.results_digest(STUDY, *HOW)
# Which runs share a job.
FIT_UNITS = fit_units(STUDY, DEVICE, config["job_hours"])
# No rule makes this file; a rule that asks for it does not apply, and Snakemake takes another one,
# or what is there.
NEVER = f"{RESULTS}/no-such-file"

if workflow.output_settings.dryrun and not workflow.output_settings.printshellcmds:
    # A dry run is a page: the jobs of each rule are counted. With --printshellcmds all are listed.
    workflow.output_settings.quiet = {Quietness.RULES, Quietness.PROGRESS}

# What Snakemake says of its own work while a job fits many runs, which nobody needs to follow it.
NOISE = "Select jobs to execute...", "Execute ", "Cannot restore "
logger.addFilter(lambda record: not record.getMessage().startswith(NOISE))


def say_what_is_missing():
    """Say which runs are finished, and in words why others have to be made."""
    logger.info(what_is_missing(STUDY, Path(RESULTS) / places.RUNS, *HOW))


def closed(names):
    """Return the constraint of a wildcard that takes these values only."""
    return "|".join(re.escape(str(name)) for name in names) or "(?!)"


def untracked(value):
    """Return a parameter that says how to compute, not what: a change of it redoes nothing.

    Snakemake does not record a parameter whose function asks for the input.
    """

    def parameter(wildcards, input):
        return value

    return parameter


def growing(megabytes):
    """Return a resource that grows when a job is tried again, perhaps for lack of memory."""

    def resource(wildcards, attempt):
        return attempt * megabytes

    return resource


def of_dataset(digest):
    """Return the parameter with a digest that depends on the dataset alone."""

    def parameter(wildcards):
        return digest(STUDY, wildcards.dataset)

    return parameter


def backbone_digest(wildcards):
    return digests.backbone_digest(STUDY, wildcards.backbone)


def is_asked_for(*files):
    """Return whether the command line names one of these files, or one below these folders."""
    asked = {Path(target) for target in workflow.dag_settings.targets}
    places = {Path(file.replace("<results>", RESULTS)) for file in files}
    return any(places & {target, *target.parents} for target in asked)


def is_everything_due():
    """Return whether rules apply although what they make is there: in jobs, reports and graphs."""
    settings = workflow.dag_settings
    forced = settings.forceall or settings.forcerun or settings.forcetargets
    return forced or not workflow.is_main_process or workflow.executor_plugin is None


def run_files(run, kind=None):
    """Return the files of a run, whose method is of this kind where its name is a wildcard."""
    method = METHODS[kind or STUDY.methods[run.method].kind]
    names = [*method.files, HISTORY, RECORD] if method.trained else []
    left = [f"{run.folder}/{name}" for name in names]
    return [f"<results>/runs/{file}" for file in [*left, *(test.file for test in run.own_tests)]]


MEASURES = measures().values()
# The tables and figures of the study, as the catalogue describes them.
TABLES = [item for item in items(STUDY) if item.kind == "table"]
FIGURES = [item for item in items(STUDY) if item.kind == "figure"]


def publishing_code(module):
    """Return the digest of what decides a table or figure: code, published numbers, names."""
    data = ("publish/reference/*", "publish/*.mplstyle", "data/registry/*.yaml")
    return code_digest(module, data=data)


def table_files(item):
    """Return the files of a table; the report shows the last one."""
    stem = f"<results>/tables/{item.name}"
    labels = {"item": f"table of {item.name}"}
    shown = report(f"{stem}.html", caption=caption(item), category=item.section, labels=labels)
    return [f"{stem}.csv", f"{stem}.md", f"{stem}.tex", shown]


def figure_files(item, backbone):
    """Return the files of a figure; the report shows the last one."""
    stem = f"<results>/figures/{backbone}/{item.name}"
    labels = {"item": f"figure of {item.name}, {backbone}"}
    shown = report(f"{stem}.png", caption=caption(item), category=item.section, labels=labels)
    return [f"{stem}.pdf", f"{stem}.csv", shown]


def caption(item):
    """Return the file of an item's text in the report, if it has one beside its own caption."""
    file = Path(workflow.basedir) / "workflow" / "report" / f"{item.entry}.rst"
    return str(file) if file.exists() else None


def own_csv(wildcards):
    """Return the CSV file that lists an own dataset, if there is one."""
    own = STUDY.own_datasets.get(wildcards.dataset)
    return str(own.csv) if own and own.csv else []


def verification_digest(wildcards, input):
    """Return the key of a verification, which asks for the input to be untracked."""
    return digests.verification_digest(STUDY, wildcards.dataset)


def of_lists(place):
    """Return the files of all shots lists of a dataset, of the first number of shots first."""
    files = [place("{dataset}", shots, seed) for shots in STUDY.shots for seed in STUDY.seeds]
    return [f"<results>/{file}" for file in files]


def how_to_compute(wildcards, input):
    """Return the options of fits and tests that say how and where, not what."""
    options = {
        "study": STUDY.path,
        "results": RESULTS,
        "cache": config["cache"],
        "device": DEVICE,
        "workers": WORKERS,
        "precision": config["precision"],
        "engine": config["engine"],
    }
    if config["scratch"]:
        options["scratch"] = config["scratch"]
    return " ".join(f"--{name} {quote(str(value))}" for name, value in options.items())


def test_pixels(wildcards):
    """Return the store of test images at the size a backbone sees."""
    return pixels_of(wildcards.dataset, wildcards.backbone)


def tested_pixels(wildcards):
    return pixels_of(wildcards.tested, wildcards.backbone)


def pixels_of(dataset, backbone):
    return f"<results>/{places.test_pixels(dataset, STUDY.image_size(backbone))}"


def run_digests(run):
    """Return the digests of a fit and of the tests on its own dataset."""
    tests = [digests.test_digest(STUDY, test, *HOW) for test in run.own_tests]
    return [digests.fit_digest(STUDY, run, *HOW), *tests]


def untrained_digests(wildcards):
    return run_digests(Run(wildcards.backbone, wildcards.dataset, wildcards.method, 0, 0))


def elsewhere_digest(wildcards):
    cell = wildcards.backbone, wildcards.dataset, wildcards.method
    run = Run(*cell, int(wildcards.shots), int(wildcards.seed))
    return digests.test_digest(STUDY, Test(run, wildcards.tested), *HOW)


@cache
def is_to_be_made(run):
    return why_missing(STUDY, run, Path(RESULTS) / places.RUNS, *HOW) is not None


def runs_of(wildcards):
    """Return the runs of a job: all that fit its wildcards."""
    given = dict(wildcards.items())

    def values(name, every):
        return [type(every[0])(given[name])] if name in given else every

    cell = [wildcards.backbone], [wildcards.dataset], values("method", STUDY.fitted_methods)
    return [
        Run(*run)
        for run in product(*cell, values("shots", STUDY.shots), values("seed", STUDY.seeds))
    ]


def closed_by_unit(unit):
    """Return the constraint of the backbone of a rule to where its unit was chosen.

    A run that is asked for by its path may be a job of its own anywhere, and so may the job that a
    cluster's node is given.
    """
    if not workflow.is_main_process or unit == "run" and IS_RUN_ASKED_FOR:
        return closed(STUDY.backbones)
    shots = {}
    for (backbone, dataset, number), chosen in FIT_UNITS.items():
        if chosen.name == unit:
            shots.setdefault((backbone, dataset), []).append(number)
    cells = [
        f"{re.escape(backbone)}(?=/{re.escape(dataset)}/[^/]+/({closed(numbers)})shot/)"
        for (backbone, dataset), numbers in shots.items()
    ]
    return "|".join(cells) or "(?!)"


def fit_inputs(unit):
    """Return the input of the rule whose jobs fit this unit, if the rule applies.

    It does not where nothing is to be made. So a study whose fits are finished, here or elsewhere,
    needs nothing that they were made from.
    """

    def applies(runs):
        if not workflow.is_main_process:
            return True
        if unit == "run" and is_asked_for(f"<results>/runs/{runs[0].folder}"):
            return True
        first = runs[0]
        if FIT_UNITS[first.backbone, first.dataset, first.shots].name != unit:
            return False
        return is_everything_due() or any(map(is_to_be_made, runs))

    def inputs(wildcards):
        runs, dataset = runs_of(wildcards), wildcards.dataset
        if not applies(runs):
            return {"nothing": NEVER}
        lists = dict.fromkeys((dataset, run.shots, run.seed) for run in runs)
        pixels = places.test_pixels(dataset, STUDY.image_size(wildcards.backbone))
        needed = {
            "gate": [places.gate(wildcards.backbone, dataset)],
            "backbone": [places.backbone(wildcards.backbone)],
            "manifest": [places.manifest(dataset)],
            "pixels": [pixels],
            "shots": [places.shots_list(*key) for key in lists],
            "shots_pixels": [places.shots_pixels(*key) for key in lists],
        }
        return {name: [f"<results>/{file}" for file in files] for name, files in needed.items()}

    return inputs


def outdated(wildcards):
    """Return the digests of a job's runs that were made otherwise than the study says now.

    What is missing needs no digest to be made, and what is finished has none: so runs that join a
    job, or leave it, make nothing be redone.
    """
    made = [run for run in runs_of(wildcards) if Path(RESULTS, "runs", run.folder, RECORD).exists()]
    return [run_digests(run) for run in made if is_to_be_made(run)]


def which_fits(wildcards, input):
    """Return the options that say which runs of the study a job fits."""
    given = dict(wildcards.items())
    options = {"method": "methods", "shots": "shots", "seed": "seeds"}
    return " ".join(f"--{options[name]} {given[name]}" for name in options if name in given)


def missing_fits(wildcards, input):
    """Return in words how many runs of a job are not finished."""
    runs = runs_of(wildcards)
    missing = sum(map(is_to_be_made, runs))
    return f"{missing} of {len(runs)} runs" if len(runs) > 1 else runs[0].folder


def fit_runtime(wildcards):
    """Return how long a job may take; one with a single fit may take longer if it has to."""
    hours = config["job_hours"]
    seconds = max(
        FIT_UNITS[run.backbone, run.dataset, run.shots].longest_seconds
        for run in runs_of(wildcards)
    )
    return f"{ceil(max(60 * hours, seconds / 30))}m"


def runs_in(unit):
    """Return the runs whose fits share a job, as patterns of their files, by kind of method."""
    shots = STUDY.shots if unit == "dataset" else ["{shots}"]
    seeds = ["{seed}"] if unit == "run" else STUDY.seeds
    if unit == "run":
        kinds = dict.fromkeys(STUDY.methods[name].kind for name in STUDY.fitted_methods)
        return [(kind, [("{method}", "{shots}", "{seed}")]) for kind in kinds]
    return [("", list(product(STUDY.fitted_methods, shots, seeds)))]


def fitted_files(kind, patterns):
    """Return the files that fits leave, tests on their own dataset included."""
    return [
        file
        for method, shots, seed in patterns
        for file in run_files(
            Run("{backbone}", "{dataset}", method, shots, seed), kind or STUDY.methods[method].kind
        )
    ]


def measure_inputs(measure, params):
    """Return the input of the rule of a measure, if the rule applies.

    It does not where its tables are there, unless Snakemake remembers that they were made with
    other parameters. So tables that were carried here need nothing that they were made from.
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
    """Return what a measure depends on; the age of files makes nothing be redone."""
    return [
        list(measure.tables.values()),
        RESULTS_DIGEST if "runs" in measure.needs else STUDY.digest,
        code_digest(measure.compute, data=measure.data),
        config["precision"] if measure.precise else "fp32",
    ]


def evidence(items):
    """Return the files that tables or figures are made from."""
    return list(dict.fromkeys(f"<results>/{file}" for item in items for file in item.files(STUDY)))


def evidence_if_alone(item):
    """Return the input of the rule of a single item, which applies if it is asked for alone."""

    def inputs(wildcards):
        alone = table_files(item) if item.kind == "table" else figure_files(item, *wildcards)
        return evidence([item]) if not workflow.is_main_process or is_asked_for(*alone) else NEVER

    return inputs
