# What the rules share: the study, the machine, and what makes a job be redone.

import re
from pathlib import Path

from blocklora.errors import UserError
from blocklora.files import json_digest
from blocklora.study.config import find_study, resolve_device, seed_groups
from blocklora.study.model import Run, load_study
from blocklora.provenance import code_digest
from blocklora.study.validation import check_config
from blocklora.theory.measures import MEASURES
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


def images_digest(wildcards):
    return json_digest(STUDY.dataset_definition(wildcards.dataset))


def listing_digest(wildcards):
    return STUDY.listing_digest(wildcards.dataset)


def backbone_digest(wildcards):
    return json_digest(STUDY.backbone_definition(wildcards.backbone))


def own_csv(wildcards):
    """Return the CSV file that lists an own dataset, if there is one."""
    own = STUDY.own_datasets.get(wildcards.dataset)
    return str(own.csv) if own and own.csv else []


def test_pixels(wildcards):
    """Return the store of test images at the size a backbone sees."""
    size = STUDY.image_size(wildcards.backbone)
    return f"<results>/pixels/{wildcards.dataset}/test-{size}px.npy"


def zero_shot_digest(wildcards):
    run = Run(wildcards.backbone, wildcards.dataset, STUDY.zero_shot, 0, 0)
    return STUDY.run_digest(run, config["precision"], config["engine"])


def run_digests(seeds):
    """Return the parameter with the digests of a job that trains these seeds."""

    def parameter(wildcards):
        cell = (wildcards.backbone, wildcards.dataset, wildcards.method, int(wildcards.shots))
        runs = [Run(*cell, seed) for seed in seeds]
        return [STUDY.run_digest(run, config["precision"], config["engine"]) for run in runs]

    return parameter


def run_files(run):
    """Return the files of a run."""
    names = ["metrics.json"]
    if STUDY.methods[run.method].kind == "adapter":
        names += ["history.csv", "adapter.safetensors"]
    return [f"<results>/runs/{run.folder}/{name}" for name in names]


# What tables, figures and claims are made from, by the option that names it.
EVIDENCE = {
    "aggregate": "<results>/runs.csv",
    "bounds": "<results>/theory/bounds.csv",
    "gaps": "<results>/theory/gaps.csv",
    "spectra": "<results>/theory/spectra.csv",
    "overlaps": "<results>/theory/overlaps.csv",
    "compression": "<results>/theory/compression.csv",
    "efficiency": "<results>/theory/efficiency.csv",
}
# The section of the report and the evidence of each table and figure but the few-shot tables.
TABLES = {
    "statistics": ("Accuracy", ["aggregate"]),
    "cost": ("Cost", ["aggregate", "efficiency"]),
    "efficiency": ("Cost", ["efficiency"]),
    "bounds": ("Theory", ["bounds", "gaps"]),
    "compression": ("Theory", ["compression"]),
    "spectra": ("Theory", ["spectra"]),
    "overlaps": ("Theory", ["overlaps"]),
}
FIGURES = {
    "cost": ("Cost", ["aggregate"]),
    "efficiency": ("Cost", ["efficiency"]),
}
if len(STUDY.methods) <= 7:  # as many curves as readers can tell apart
    FIGURES["accuracy"] = ("Accuracy", ["aggregate"])
    FIGURES["bounds"] = ("Theory", ["bounds", "gaps"])
    FIGURES["spectra"] = ("Theory", ["spectra"])
TABLE_FORMS = ["csv", "md", "tex", "html"]
if STUDY.backbones_from("openai"):
    TABLES["calibration"] = ("Accuracy", ["aggregate"])
if len(STUDY.adapter_methods) > 2:
    TABLES["ablation"] = FIGURES["ablation"] = ("Accuracy", ["aggregate"])


def evidence(names):
    return {name: EVIDENCE[name] for name in names}


def as_options(wildcards, input):
    """Return the evidence among the input as options of a command."""
    return " ".join(f"--{name} {file}" for name, file in input.items())
