# What the rules share: the study, the machine, and what makes a job be redone.

import re
from pathlib import Path
from shlex import quote

from blocklora.errors import UserError
from blocklora.experiments import further_tests, items, measures
from blocklora.methods import METHODS
from blocklora.methods.adapter import ADAPTER_FILE
from blocklora.provenance import code_digest
from blocklora.publish.catalogue import CLAIMS_NEED
from blocklora.publish.places import evidence_file
from blocklora.runs.record import HISTORY, RECORD
from blocklora.study import digests
from blocklora.study.config import find_study, resolve_device, seed_groups
from blocklora.study.model import Run, Test, load_study
from blocklora.study.validation import check_config
from blocklora.theory.sources import unlisted_datasets


def load_configured_study():
    """Return the study of the configuration; end Snakemake with one message if either is wrong."""
    try:
        check_config(config, "config.yaml or --config")
        return load_study(find_study(config["study"], Path(workflow.basedir) / "studies"))
    except UserError as error:
        raise SystemExit(f"{error}") from None


STUDY = load_configured_study()
# What the texts of the report say of the study.
config["title"] = STUDY.title
config["miniature"] = STUDY.miniature is not None
RESULTS = f"results/{STUDY.name}"
DEVICE = resolve_device(config["device"])
GPUS = 1 if DEVICE == "cuda" else 0
# Threads that prepare batches beside a GPU. A CPU computes with one thread: the number of threads
# changes the order of sums, and with it the last digits of results.
WORKERS = 4 if DEVICE == "cuda" else 0
SEED_GROUPS = {
    "_".join(map(str, seeds)): seeds for seeds in seed_groups(STUDY.seeds, config["seeds_per_job"])
}


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


def shots_digest(wildcards):
    return digests.shots_digest(STUDY, wildcards.dataset, int(wildcards.shots), int(wildcards.seed))


def backbone_digest(wildcards):
    return digests.backbone_digest(STUDY, wildcards.backbone)


def how_to_compute(wildcards, input):
    """Return the options of fits and tests that say how and where, not what."""
    options = {
        "study": STUDY.path,
        "runs": f"{RESULTS}/runs",
        "device": DEVICE,
        "workers": WORKERS,
        "precision": config["precision"],
        "engine": config["engine"],
    }
    if config["scratch"]:
        options["scratch"] = config["scratch"]
    return " ".join(f"--{name} {quote(str(value))}" for name, value in options.items())


def own_csv(wildcards):
    """Return the CSV file that lists an own dataset, if there is one."""
    own = STUDY.own_datasets.get(wildcards.dataset)
    return str(own.csv) if own and own.csv else []


def test_pixels(wildcards):
    """Return the store of test images at the size a backbone sees."""
    return pixels_of(wildcards.dataset, wildcards.backbone)


def tested_pixels(wildcards):
    return pixels_of(wildcards.tested, wildcards.backbone)


def pixels_of(dataset, backbone):
    return f"<results>/pixels/{dataset}/test-{STUDY.image_size(backbone)}px.npy"


def run_digests(run):
    """Return the digests of a fit and of the tests on its own dataset."""
    how = config["precision"], config["engine"]
    tests = [digests.test_digest(STUDY, test, *how) for test in run.own_tests]
    return [digests.fit_digest(STUDY, run, *how), *tests]


def untrained_digests(wildcards):
    return run_digests(Run(wildcards.backbone, wildcards.dataset, wildcards.method, 0, 0))


def elsewhere_digest(wildcards):
    run = Run(
        wildcards.backbone,
        wildcards.dataset,
        wildcards.method,
        int(wildcards.shots),
        int(wildcards.seed),
    )
    test = Test(run, wildcards.tested)
    return digests.test_digest(STUDY, test, config["precision"], config["engine"])


def fits_digests(seeds):
    """Return the parameter with the digests of a job that fits these seeds."""

    def parameter(wildcards):
        cell = (wildcards.backbone, wildcards.dataset, wildcards.method, int(wildcards.shots))
        return [run_digests(Run(*cell, seed)) for seed in seeds]

    return parameter


def fitted_kinds():
    """Return the methods of the study that are fitted, by their kind."""
    kinds = {}
    for name in STUDY.fitted_methods:
        kinds.setdefault(STUDY.methods[name].kind, []).append(name)
    return kinds


def run_files(run, kind=None):
    """Return the files of a run, whose method is of this kind where its name is a wildcard."""
    method = METHODS[kind or STUDY.methods[run.method].kind]
    names = [RECORD, HISTORY, *method.files] if method.trained else []
    left = [f"{run.folder}/{name}" for name in names]
    return [f"<results>/runs/{file}" for file in [*left, *(test.file for test in run.own_tests)]]


def fit_files(kind, seeds):
    """Return the files that fits of this kind leave, tests on their own dataset included."""
    runs = [Run("{backbone}", "{dataset}", "{method}", "{shots}", seed) for seed in seeds]
    return [file for run in runs for file in run_files(run, kind)]


MEASURES = measures().values()
# The tables and figures of the study, as the catalogue describes them.
TABLES = [item for item in items(STUDY) if item.kind == "table"]
FIGURES = [item for item in items(STUDY) if item.kind == "figure"]
TABLE_FORMS = ["csv", "md", "tex", "html"]
FIGURE_FORMS = ["pdf", "png", "csv"]


def publishing_code(module):
    """Return the digest of what decides a table or figure: code, published numbers, names."""
    data = ("publish/reference/*", "publish/*.mplstyle", "data/registry/*.yaml")
    return code_digest(module, data=data)


def caption(item):
    """Return the file of an item's text in the report, if it has one beside its own caption."""
    file = Path(workflow.basedir) / "workflow" / "report" / f"{item.entry}.rst"
    return str(file) if file.exists() else None
