"""Study files and run records made up for the tests of publishing."""

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from blocklora.files import write_json
from blocklora.publish.inputs import final_tests
from blocklora.publish.results import Results, load_results
from blocklora.runs.aggregate import aggregate
from blocklora.runs.predictions import Predictions, write_predictions
from blocklora.runs.record import RECORD, SCHEMA
from blocklora.study.digests import fit_digest
from blocklora.study.digests import test_digest as digest_of_test
from blocklora.study.run import Run, Test
from blocklora.study.study import Study, load_study

ROOT = Path(__file__).parents[2]
PAPER = ROOT / "studies" / "paper.yaml"
CLIP_LORA = {
    "kind": "adapter",
    "rank": 2,
    "blocks": 1,
    "partition": "rank",
    "alpha": 1,
    "dropout": 0.25,
    "matrices": ["q", "k", "v"],
    "layers": "all",
    "towers": ["vision", "text"],
}
METHODS = {
    "zero_shot": {"kind": "zero_shot"},
    "clip_lora": CLIP_LORA,
    "block_lora": CLIP_LORA | {"blocks": 2},
}
TEST_IMAGES = 1000
CLASSES = 10
# Of ViT-B/16, by rank and blocks, from r (d_in / n + d_out) over 36 matrices of width 768 and 36
# of width 512.
PARAMETERS = {
    (1, 1): 92_160,
    (2, 1): 184_320,
    (2, 2): 138_240,
    (4, 1): 368_640,
    (4, 2): 276_480,
    (4, 4): 230_400,
}


def write_study(path: Path, **changes: Any) -> Path:
    """Write a small study of two real datasets, with `changes` of top-level keys."""
    document = yaml.safe_load(PAPER.read_text(encoding="utf-8")) | {
        "name": path.stem,
        "title": "A made-up study",
        "datasets": ["eurosat", "dtd"],
        "shots": [1, 4],
        "seeds": [1, 2, 3],
        "methods": METHODS,
    }
    document["recipe"] |= {"learning_rate": 2.0e-4, "final_learning_rate": 1.0e-6}
    document["recipe"]["weight_decay"] = 0.01
    path.write_text(yaml.safe_dump(document | changes, sort_keys=False), encoding="utf-8")
    return path


def record(study: Study, run: Run) -> dict[str, Any]:
    """Return the record of a fit."""
    adapter = study.methods[run.method].adapter
    parameters = PARAMETERS[adapter.rank, adapter.blocks]
    return {
        "schema": SCHEMA,
        "run": vars(run),
        "method": study.methods[run.method].values,
        "recipe": {},
        "images": {"train_images": CLASSES * run.shots, "classes": CLASSES},
        "cost": {
            "trainable_parameters": parameters,
            "adapted_matrices": 72,
            "adapter_bytes": 4 * parameters,
            "iterations": 500 * run.shots,
            "training_seconds": 10.0 * run.shots - 1,
            "step_seconds": 0.016,
            "peak_memory_bytes": 2_000_000_000 + 1000 * parameters,
            "energy_joules": 1800.0 * run.shots,
        },
        "provenance": {
            "key": "k" * 64,
            "fit_digest": fit_digest(study, run, "fp32", "fast"),
            "code_digest": "c" * 64,
            "backbone_sha256": "b" * 64,
            "shots_sha256": "s" * 64,
            "pixels_sha256": "p" * 64,
            "device": "cpu",
            "device_name": "a test",
            "precision": "fp32",
            "engine": "fast",
            "versions": {},
            "started": "2026-01-01T00:00:00+00:00",
        },
    }


def predictions(study: Study, test: Test, accuracy: float) -> Predictions:
    """Return predictions with an accuracy, rounded to whole images; errors go to the next class."""
    count = TEST_IMAGES if test.part == "test" else CLASSES * test.run.shots
    label = np.arange(count) % CLASSES
    wrong = np.arange(count) >= round(accuracy * count)
    facts = {
        "run": vars(test.run),
        "dataset": test.dataset,
        "part": test.part,
        "classnames": [f"class {number}" for number in range(CLASSES)],
        "key": "t" * 64,
        "test_digest": digest_of_test(study, test, "fp32", "fast"),
        "backbone_sha256": "b" * 64,
        "seconds": 0.5,
        "peak_memory_bytes": 2_000_000_000,
        "energy_joules": 500.0,
        "device": "cpu",
        "device_name": "a test",
        "precision": "fp32",
        "engine": "fast",
    }
    return Predictions(label, (label + wrong) % CLASSES, np.full(count, 0.9), facts)


def write_records(
    study: Study,
    folder: Path,
    accuracy: Callable[[Run], float],
    missing: Collection[Run] = (),
) -> Path:
    """Write record and predictions of every run of a study but the missing ones."""
    for run in study.runs():
        if run in missing:
            continue
        if run.method in study.fitted_methods:
            write_json(folder / run.folder / RECORD, record(study, run))
        for test in run.own_tests:
            share = accuracy(run) if test.part == "test" else 0.95
            write_predictions(folder / test.file, predictions(study, test, share))
    return folder


def made_results(
    folder: Path,
    accuracy: Callable[[Run], float],
    missing: Collection[Run] = (),
    study_path: Path | None = None,
    **changes: Any,
) -> Results:
    """Return the results of a made-up study (or of the study file given), read from files."""
    study_path = study_path or write_study(folder / "made.yaml", **changes)
    runs = write_records(load_study(study_path), folder / "runs", accuracy, missing)
    aggregate(study_path, runs, folder / "runs.csv", partial=True)
    return load_results(study_path, folder)


def write_predicted(
    results: Results,
    predicted: Callable[[Test, np.ndarray], Any],
    label: Sequence[int],
    names: Sequence[str],
    missing: Collection[Run] = (),
) -> None:
    """Write what `predicted` says of images of these labels, for each test that tables read."""
    for test in final_tests(results.study):
        if test.run not in missing:
            path = results.predictions_path(test)
            path.parent.mkdir(parents=True, exist_ok=True)
            labels = np.asarray(label, np.int32)
            taken = np.asarray(predicted(test, labels), np.int32)
            facts = {"classnames": list(names)}
            probability = np.ones(len(labels), np.float32)
            write_predictions(path, Predictions(labels, taken, probability, facts))


BACKBONE = "ViT-B-16-quickgelu"
THEORY = {
    "bounds": """\
backbone,dataset,method,shots,classes,samples,parameters,effective_parameters,bits,sigma,bound,\
effective_bound,ratio_to_lora,effective_ratio_to_lora
{b},dtd,clip_lora,4,47,188,184320,184320,32,0.5,104.2,104.2,1.0,1.0
{b},eurosat,clip_lora,4,10,40,184320,184320,32,0.5,226.0,226.0,1.0,1.0
{b},dtd,block_lora,4,47,188,138240,92160,32,0.5,90.3,73.7,0.866,0.707
{b},eurosat,block_lora,4,10,40,138240,92160,32,0.5,195.8,159.8,0.866,0.707
{b},dtd,clip_lora_b_only,4,47,188,92160,92160,32,0.5,73.7,73.7,0.707,0.707
""",
    "gaps": """\
backbone,dataset,method,shots,seed,train_accuracy,test_accuracy,gap,bound,vacuous
{b},dtd,clip_lora,4,1,0.9,0.6,0.3,104.2,true
{b},dtd,clip_lora,4,2,0.9,0.5,0.4,104.2,true
{b},dtd,block_lora,4,1,0.8,0.6,0.2,0.5,false
{b},eurosat,block_lora,4,1,0.8,0.9,-0.1,195.8,true
""",
    "spectra": """\
backbone,dataset,method,shots,seed,tower,layer,matrix,effective_rank,frobenius_norm,\
spectral_norm,arms_max_relative_difference
{b},dtd,clip_lora,4,1,vision,0,q,1.5,0.5,0.4,
{b},dtd,clip_lora,4,1,vision,1,q,1.9,0.7,0.6,
{b},dtd,clip_lora,4,1,text,0,q,1.2,0.5,0.4,
{b},dtd,block_lora,4,1,vision,0,q,1.0,0.3,0.3,0.0
{b},dtd,block_lora,4,1,vision,1,q,1.0,0.3,0.3,2e-05
{b},dtd,block_lora,4,1,text,0,q,1.0,0.3,0.3,1e-06
""",
    "overlaps": """\
backbone,dataset,shots,seed,method,other_method,tower,layer,matrix,output_overlap,input_overlap,chance
{b},dtd,4,1,block_lora,clip_lora,vision,0,q,0.9,0.6,0.002604
{b},dtd,4,2,block_lora,clip_lora,vision,0,q,0.7,0.5,0.002604
{b},dtd,4,1,block_lora,clip_lora,text,0,q,0.8,0.4,0.003906
""",
    "compression": """\
backbone,dataset,method,shots,seed,bits_per_weight,compressed_bits,train_error,\
guessing_error,bound,vacuous
{b},dtd,clip_lora,4,1,0.5,8000,0.02,0.98,0.96,false
{b},dtd,clip_lora,4,2,1.5,16000,0.04,0.98,0.99,true
{b},eurosat,clip_lora,4,1,1.0,12000,0.03,0.9,0.95,true
{b},dtd,block_lora,4,1,0.5,4000,0.0,0.98,0.784,false
""",
    "efficiency": """\
backbone,dataset,classes,method,rank,blocks,partition,parameters,adapter_bytes,optimizer_bytes,\
flops_per_step_formula,flops_per_step_counted,planned_memory_bytes
{b},dtd,47,lora,2,1,rank,184320,749168,1474576,1000e9,1000e9,3e9
{b},dtd,47,block_lora,2,2,rank,138240,564832,1105936,998e9,998e9,2.9e9
{b},imagenet,1000,lora,2,1,rank,184320,749168,1474576,3423e9,3423e9,6e9
{b},imagenet,1000,block_lora,2,2,rank,138240,564832,1105936,3419e9,3419e9,5.9e9
{b},imagenet,1000,lora,8,1,rank,737280,2960000,5900000,3450e9,3450e9,6.1e9
{b},imagenet,1000,block_lora,8,8,rank,414720,1670000,3320000,3420e9,3420e9,6e9
""",
}


def write_theory(folder: Path) -> Path:
    """Write small files of the theory step into a folder of results; return that folder."""
    (folder / "theory").mkdir(exist_ok=True)
    for name, text in THEORY.items():
        path = folder / "theory" / f"{name}.csv"
        path.write_text(text.replace("{b}", BACKBONE), encoding="utf-8")
    return folder
