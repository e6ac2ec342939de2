"""A small study for tests of runs: random weights, a handful of images, nothing fitted yet."""

import csv
import json
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from blocklora.backbones.weights import save_backbone
from blocklora.cli import main
from blocklora.data.manifest import LabelledImage, write_manifest, write_shots
from blocklora.data.source import Source, write_source
from blocklora.runs.predictions import read_predictions
from blocklora.study import places
from tests.tiny import SHAPE, tiny_backbone

ROOT = Path(__file__).parents[2]
CLASSES = ("red cat", "dog's $(house)")
METHODS = ("clip_lora", "block_lora")
SHOTS_AND_SEEDS = ((1, 1), (1, 2), (2, 1), (2, 2))


def decode(folder, *arguments):
    command = ["decode-images", "--source", folder / places.source("own"), "--pixel-budget-gb", 1]
    assert main([str(argument) for argument in (*command, *arguments)]) == 0


def write_small_study(path, images, **changes):
    """Write a study of one dataset of one's own."""
    study = yaml.safe_load((ROOT / "studies/mini.yaml").read_text())
    study |= {"name": path.stem, "datasets": ["own"], "shots": [2], "seeds": [1, 2]}
    study["own_datasets"] = {"own": {"images": str(images)}}
    study["recipe"] |= {"iterations_per_shot": 3, "log_every": 2, "batch_size": 3}
    path.write_text(yaml.safe_dump(study | changes, sort_keys=False))


def prepare(folder):
    """Write a study into a folder, and its results as they are before anything is fitted."""
    write_small_study(folder / "small.yaml", folder / "images")
    generator = np.random.default_rng(0)
    images = []
    for split, count in (("train", 4), ("val", 2), ("test", 5)):
        for label, name in enumerate(CLASSES):
            for number in range(count):
                path = f"{split}/{name}/{number}.png"
                file = folder / "images" / path
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(generator.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(file)
                images.append(LabelledImage(path, label, name, split))
    manifest = folder / places.manifest("own")
    write_manifest(manifest, images)
    write_source(folder / places.source("own"), Source("own", str(folder / "images"), None, "user"))
    weights = folder / places.backbone("mini-clip")
    save_backbone(weights, SHAPE, tiny_backbone().weights, "random")
    test_pixels = folder / places.test_pixels("own", 32)
    decode(folder, "--manifest", manifest, "--size", 32, "--output", test_pixels)
    train = [image for image in images if image.split == "train"]
    lists = [folder / places.shots_list("own", *each) for each in SHOTS_AND_SEEDS]
    for (shots, seed), path in zip(SHOTS_AND_SEEDS, lists, strict=True):
        chosen = (seed - 1, seed + 3) if shots == 1 else (seed - 1, seed, seed + 3, seed + 4)
        write_shots(path, [train[index] for index in chosen])
    stores = [folder / places.shots_pixels("own", *each) for each in SHOTS_AND_SEEDS]
    decode(folder, "--shots-lists", *lists, "--output", *stores)


def results_in(folder, prepared):
    """Return the results below a folder, where those before the first fit are linked to."""
    results = folder / "results"
    for name in ("backbones", "data", "shots", "pixels"):
        if not (results / name).exists():
            results.mkdir(parents=True, exist_ok=True)
            (results / name).symlink_to(prepared / name)
    return results


def arguments_of(command, prepared, folder):
    """Return the arguments of a command; a study file in the folder comes first."""
    study = next(folder.glob("*.yaml"), prepared / "small.yaml")
    return [
        command, "--study", study, "--backbone", "mini-clip", "--dataset", "own",
        "--results", results_in(folder, prepared), "--cache", folder / "cache",
    ]  # fmt: skip


def fit(prepared, folder, seeds=(1,), method="block_lora", *more):
    arguments = arguments_of("fit", prepared, folder)
    arguments += ["--methods", method, "--seeds", *seeds, *more]
    return main([str(argument) for argument in arguments])


def zero_shot(prepared, folder, *more):
    arguments = [*arguments_of("test", prepared, folder), "--method", "zero_shot", *more]
    return main([str(argument) for argument in arguments])


def run_folder(folder, seed, method="block_lora", shots=2):
    return folder / "results/runs/mini-clip/own" / method / f"{shots}shot/seed{seed}"


def record_of(folder, seed, method="block_lora"):
    return json.loads((run_folder(folder, seed, method) / "fit.json").read_text())


def predictions_of(folder, seed, part="test", method="block_lora"):
    return read_predictions(run_folder(folder, seed, method) / f"tests/own/{part}.safetensors")


def files_of(folder):
    """Return the content of every file below a folder, by its place."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def timeless(folder):
    """Return what the files of a run say, without the times and the memory that it took."""
    record = json.loads((folder / "fit.json").read_text())
    predictions = [read_predictions(path) for path in sorted(folder.rglob("tests/*/*"))]
    for values in (record["cost"], record["provenance"], *(p.facts for p in predictions)):
        for name in [*values]:
            if name.endswith("seconds") or name in ("peak_memory_bytes", "started"):
                del values[name]
    rows = [row[:-1] for row in csv.reader((folder / "history.csv").open())]
    arrays = [(p.label.tobytes(), p.predicted.tobytes(), p.probability.tobytes(), p.facts)
              for p in predictions]  # fmt: skip
    return record, rows, arrays, (folder / "adapter.safetensors").read_bytes()
