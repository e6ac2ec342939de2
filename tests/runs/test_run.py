"""Runs from files to files, by the command line."""

import csv
import gc
import json
import logging
import re
import shutil
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from blocklora.adapters.adapter import Adapter
from blocklora.adapters.store import load_adapter
from blocklora.backbones.weights import load_backbone, save_backbone
from blocklora.cli import main
from blocklora.data.manifest import LabelledImage, write_manifest, write_shots
from blocklora.data.preprocess import preprocessed
from blocklora.engine.classifier import Classifier
from blocklora.engine.fast import FastEngine
from blocklora.files import write_json
from blocklora.methods.adapter import LowRankAdapter
from blocklora.methods.base import Fit
from blocklora.runs.predictions import read_predictions
from blocklora.runs.record import HISTORY_COLUMNS
from blocklora.tensorfiles import read_tensors, write_tensors
from tests.tiny import SHAPE, tiny_backbone

ROOT = Path(__file__).parents[2]
CLASSES = ("red cat", "dog's $(house)")


def decode(folder, kind, listed, output):
    arguments = [
        "decode-images", "--source", folder / "source.json", kind, folder / listed,
        "--pixel-budget-gb", 1, "--output", folder / output,
    ]  # fmt: skip
    if kind == "--manifest":
        arguments += ["--size", 32]
    assert main([str(argument) for argument in arguments]) == 0


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A study of one drawn dataset, with everything that comes before training."""
    folder = tmp_path_factory.mktemp("study")
    study = yaml.safe_load((ROOT / "studies/mini.yaml").read_text())
    study["name"] = "small"
    study["datasets"] = ["own"]
    study["own_datasets"] = {"own": {"images": str(folder / "images")}}
    study["recipe"] |= {"iterations_per_shot": 3, "log_every": 2, "batch_size": 3}
    (folder / "small.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
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
    write_manifest(folder / "manifest.csv", images)
    write_json(
        folder / "source.json",
        {
            "dataset": "own",
            "image_root": str(folder / "images"),
            "split_file": None,
            "origin": "user",
            "files": [],
        },
    )
    backbone = tiny_backbone()
    save_backbone(folder / "backbone.safetensors", SHAPE, backbone.weights, "random")
    decode(folder, "--manifest", "manifest.csv", "test.npy")
    for seed in (1, 2):
        train = [image for image in images if image.split == "train"]
        chosen = [train[i] for i in (seed - 1, seed, seed + 3, seed + 4)]
        write_shots(folder / f"seed{seed}.csv", chosen)
        decode(folder, "--shots-list", f"seed{seed}.csv", f"seed{seed}.npz")
    return folder


def task_arguments(prepared, runs):
    return [
        "--study", prepared / "small.yaml", "--backbone", "mini-clip", "--dataset", "own",
        "--backbone-file", prepared / "backbone.safetensors",
        "--manifest", prepared / "manifest.csv", "--test-pixels", prepared / "test.npy",
        "--runs", runs,
    ]  # fmt: skip


def fit(prepared, runs, seeds=(1,), method="block_lora", **changes):
    arguments = [
        "fit", *task_arguments(prepared, runs), "--method", method, "--shots", 2,
        "--seeds", *seeds, "--shots-lists", *(prepared / f"seed{s}.csv" for s in seeds),
        "--shots-pixels", *(prepared / f"seed{s}.npz" for s in seeds),
        "--checkpoints", runs / "checkpoints",
    ]  # fmt: skip
    for name, value in changes.items():
        arguments[arguments.index(f"--{name.replace('_', '-')}") + 1] = value
    return main([str(argument) for argument in arguments])


def run_folder(runs, seed, method="block_lora"):
    return runs / "mini-clip/own" / method / f"2shot/seed{seed}"


def predictions_of(runs, seed, part="test", method="block_lora"):
    return read_predictions(run_folder(runs, seed, method) / f"tests/own/{part}.safetensors")


def timeless(record):
    record["cost"] = {
        key: value
        for key, value in record["cost"].items()
        if not key.endswith("_seconds") and key != "peak_memory_bytes"
    }
    record["provenance"].pop("started")
    return record


def test_a_run_leaves_record_history_and_adapter(prepared, tmp_path):
    assert fit(prepared, tmp_path, seeds=(1, 2)) == 0
    for seed in (1, 2):
        folder = run_folder(tmp_path, seed)
        assert sorted(p.name for p in folder.iterdir()) == [
            "adapter.safetensors",
            "fit.json",
            "history.csv",
            "tests",
        ]
        record = json.loads((folder / "fit.json").read_text())
        assert record["run"] == {
            "study": "small", "backbone": "mini-clip", "dataset": "own",
            "method": "block_lora", "shots": 2, "seed": seed,
        }  # fmt: skip
        cost = record["cost"]
        assert record["images"] == {"train_images": 4, "classes": 2}
        for part, images in (("test", 10), ("train", 4)):
            predictions = predictions_of(tmp_path, seed, part)
            assert predictions.images == images
            assert predictions.facts["classnames"] == list(CLASSES)
            assert (predictions.probability >= 0.5).all()
        # 3 + 2 layers, q k v, rank 4 in 2 blocks, widths 32 and 16.
        assert cost["adapted_matrices"] == 15
        assert cost["trainable_parameters"] == 9 * (2 * 32 + 4 * 32) + 6 * (2 * 16 + 4 * 16)
        assert cost["iterations"] == 6
        assert cost["recorded_steps"] is None  # nothing is recorded on a CPU
        assert cost["adapter_bytes"] == (folder / "adapter.safetensors").stat().st_size
        rows = list(csv.DictReader((folder / "history.csv").open()))
        assert [row["step"] for row in rows] == ["2", "4", "6"]
        backbone = load_backbone(prepared / "backbone.safetensors")
        adapter = load_adapter(folder / "adapter.safetensors", backbone.sha256)
        assert adapter.trainable_parameters == cost["trainable_parameters"]
    assert not list((tmp_path / "checkpoints").glob("*"))


def test_one_seed_twice_gives_equal_bytes(prepared, tmp_path):
    for name in ("first", "second"):
        assert fit(prepared, tmp_path / name) == 0
    first, second = (run_folder(tmp_path / name, 1) for name in ("first", "second"))
    file = "adapter.safetensors"
    assert (first / file).read_bytes() == (second / file).read_bytes()
    records = [timeless(json.loads((f / "fit.json").read_text())) for f in (first, second)]
    assert records[0] == records[1]


def test_memory_running_out_is_survived_by_smaller_chunks(prepared, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    assert fit(prepared, tmp_path / "undisturbed") == 0
    step, used = FastEngine.step, []

    def fail_once(self, images, labels, number, scaler):
        if type(images) is torch.Tensor:  # planning steps with fake ones
            used.append((number, len(self.chunks)))
            if len(used) == 3:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.")
        return step(self, images, labels, number, scaler)

    monkeypatch.setattr(FastEngine, "step", fail_once)
    assert fit(prepared, tmp_path / "disturbed") == 0
    assert "out of memory with Chunks(tokens=None, images=None)" in caplog.text
    # From the start, since no checkpoint was due, and in chunks.
    assert used[:3] == [(0, 1), (1, 1), (2, 1)]
    assert [number for number, _ in used[3:]] == list(range(6))
    assert used[3][1] > 1
    folders = [run_folder(tmp_path / name, 1) for name in ("undisturbed", "disturbed")]
    planned = [
        json.loads((folder / "fit.json").read_text())["cost"]["planned_memory_bytes"]
        for folder in folders
    ]
    assert planned[0] is None
    assert planned[1] > 0
    for (_, ours), (_, theirs) in zip(
        *(load_adapter(folder / "adapter.safetensors").updates() for folder in folders), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=0.02, atol=0.02 * theirs.abs().max().item())


def test_no_engine_is_alive_beside_the_evaluation_or_the_next_seed(prepared, tmp_path, monkeypatch):
    """The loss of the first seed is not finite; its error must not keep its tensors either."""
    engines, alive = [], []
    step, prepare, test = FastEngine.step, FastEngine.__init__, Classifier.__init__

    def living():
        return sum(engine() is not None for engine in engines)

    def spoiled(self, *inputs):
        loss, correct = step(self, *inputs)
        return (loss if self.seed == 2 else loss * float("nan")), correct

    def noted(self, *arguments, **options):
        alive.append(living())
        engines.append(weakref.ref(self))
        prepare(self, *arguments, **options)

    def tested(self, *arguments, **options):
        alive.append(living())
        test(self, *arguments, **options)

    monkeypatch.setattr(FastEngine, "step", spoiled)
    monkeypatch.setattr(FastEngine, "__init__", noted)
    monkeypatch.setattr(Classifier, "__init__", tested)
    gc.disable()
    try:
        assert fit(prepared, tmp_path, seeds=(1, 2)) == 1
    finally:
        gc.enable()
    assert alive == [0, 0, 0]


@pytest.mark.parametrize("recorded", [True, False])
def test_the_record_says_whether_steps_were_recorded(prepared, tmp_path, monkeypatch, recorded):
    monkeypatch.setattr(FastEngine, "recorded", recorded)
    assert fit(prepared, tmp_path) == 0
    record = json.loads((run_folder(tmp_path, 1) / "fit.json").read_text())
    assert record["cost"]["recorded_steps"] is recorded


def test_a_run_says_how_long_it_took_to_its_first_step(prepared, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    assert fit(prepared, tmp_path) == 0
    assert re.search(r"ready for its first step after \d+\.\d s", caplog.text)


def test_both_engines_are_told_apart_and_agree_without_dropout(prepared, tmp_path):
    study = yaml.safe_load((prepared / "small.yaml").read_text())
    for method in ("clip_lora", "block_lora"):
        study["methods"][method]["dropout"] = 0
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(study, sort_keys=False))
    adapters = []
    for engine in ("fast", "reference"):
        runs = tmp_path / engine
        arguments = [
            "fit", *task_arguments(prepared, runs), "--method", "clip_lora", "--shots", "2",
            "--seeds", "1", "--shots-lists", prepared / "seed1.csv", "--shots-pixels",
            prepared / "seed1.npz", "--checkpoints", runs / "c", "--engine", engine,
        ]  # fmt: skip
        arguments[2] = path
        assert main([str(argument) for argument in arguments]) == 0
        folder = run_folder(runs, 1, "clip_lora")
        record = json.loads((folder / "fit.json").read_text())
        assert record["provenance"]["engine"] == engine
        adapters.append(load_adapter(folder / "adapter.safetensors"))
    for (_, ours), (_, theirs) in zip(*(a.updates() for a in adapters), strict=True):
        assert (ours - theirs).norm() < 0.02 * theirs.norm()


def test_a_method_may_learn_without_steps(prepared, tmp_path, monkeypatch):
    def fit_at_once(self, config, recipe, task, shots, compute, keeper):
        adapter = Adapter.initialise(config, SHAPE.tower_shapes, torch.Generator())
        classifier = self.classifier(adapter, recipe, task, compute.device, compute.precision)
        pixels = preprocessed(shots.images, SHAPE.image_size)
        features = torch.cat([part for some in pixels for part in classifier.features(some)])
        assert features.shape == (4, SHAPE.embed_dim)
        torch.testing.assert_close(features.norm(dim=-1), torch.ones(4))
        return Fit(adapter, None, {})

    monkeypatch.setattr(LowRankAdapter, "fit", fit_at_once)
    assert fit(prepared, tmp_path) == 0
    folder = run_folder(tmp_path, 1)
    cost = json.loads((folder / "fit.json").read_text())["cost"]
    assert (cost["step_seconds"], "iterations" in cost) == (None, False)
    assert cost["training_seconds"] > 0
    assert (folder / "history.csv").read_text().splitlines() == [",".join(HISTORY_COLUMNS)]
    assert predictions_of(tmp_path, 1).images == 10


def zero_shot(prepared, runs, *more):
    arguments = ["test", *task_arguments(prepared, runs), "--method", "zero_shot", *more]
    return main([str(argument) for argument in arguments])


def test_zero_shot_leaves_predictions_alone(prepared, tmp_path):
    assert zero_shot(prepared, tmp_path) == 0
    folder = tmp_path / "mini-clip/own/zero_shot/0shot/seed0"
    files = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    assert files == [Path("tests/own/test.safetensors")]
    predictions = read_predictions(folder / files[0])
    assert (predictions.images, predictions.facts["run"]["method"]) == (10, "zero_shot")


@pytest.mark.parametrize("method", ["zero_shot", "block_lora"])
def test_shots_and_seeds_go_with_methods_that_are_fitted(prepared, tmp_path, capsys, method):
    more = ["--shots", 2, "--seeds", 1] if method == "zero_shot" else []
    assert zero_shot(prepared, tmp_path, "--method", method, *more) == 1
    assert "--shots and --seeds" in capsys.readouterr().err


def test_a_fit_is_tested_afterwards_as_at_once(prepared, tmp_path):
    assert fit(prepared, tmp_path) == 0
    path = run_folder(tmp_path, 1) / "tests/own/test.safetensors"
    before = read_predictions(path)
    path.unlink()
    record = run_folder(tmp_path, 1) / "fit.json"
    modified = record.stat().st_mtime_ns
    arguments = ["test", *task_arguments(prepared, tmp_path), "--method", "block_lora"]
    assert main([str(a) for a in (*arguments, "--shots", 2, "--seeds", 1)]) == 0
    after = read_predictions(path)
    for name in ("label", "predicted", "probability"):
        assert np.array_equal(getattr(before, name), getattr(after, name))
    assert record.stat().st_mtime_ns == modified


def test_a_test_without_a_fit_is_refused(prepared, tmp_path, capsys):
    arguments = ["test", *task_arguments(prepared, tmp_path), "--method", "block_lora"]
    assert main([str(a) for a in (*arguments, "--shots", 2, "--seeds", 1)]) == 1
    assert "block_lora/2shot/seed1: there is no fit of it" in capsys.readouterr().err


def test_a_finished_run_is_left_as_it_is(prepared, tmp_path):
    assert fit(prepared, tmp_path) == 0
    metrics = run_folder(tmp_path, 1) / "fit.json"
    before = metrics.stat().st_mtime_ns
    assert fit(prepared, tmp_path) == 0
    assert metrics.stat().st_mtime_ns == before


@pytest.mark.parametrize("file", ["fit.json", "adapter.safetensors"])
def test_a_result_cut_short_is_made_again(prepared, tmp_path, file):
    assert fit(prepared, tmp_path) == 0
    path = run_folder(tmp_path, 1) / file
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert fit(prepared, tmp_path) == 0
    if file == "adapter.safetensors":
        assert path.read_bytes() == content
    json.loads((run_folder(tmp_path, 1) / "fit.json").read_text())


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("method", "zero_shot", "is not a method that is fitted; there are clip_lora, block_lora"),
        ("backbone_file", "nowhere.safetensors", "no such backbone file"),
        ("test_pixels", "seed1.npz", "seed1.npz"),
        ("shots_pixels", "seed2.npz", "holds other images than"),
        ("shots_lists", "one_class.csv", "holds other images than"),
    ],
)
def test_unusable_inputs_end_with_one_line_and_no_output(
    prepared, tmp_path, capsys, option, value, message
):
    value = value if option == "method" else prepared / value
    if option == "shots_lists":
        write_shots(value, [LabelledImage("train/red cat/0.png", 0, CLASSES[0], "train")])
    assert fit(prepared, tmp_path, **{option: value}) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("blocklora fit: error: ")
    assert message in error
    assert not list(tmp_path.rglob("*.json"))
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_class_without_training_images_is_named(prepared, tmp_path, capsys):
    copied = tmp_path / "data"
    shutil.copytree(prepared, copied)
    write_shots(
        copied / "seed1.csv", [LabelledImage("train/red cat/0.png", 0, CLASSES[0], "train")]
    )
    decode(copied, "--shots-list", "seed1.csv", "seed1.npz")
    assert fit(copied, tmp_path / "runs") == 1
    assert 'the class "dog\'s $(house)" has no training image' in capsys.readouterr().err


def test_a_gpu_that_is_not_there_is_refused(prepared, tmp_path, capsys):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert zero_shot(prepared, tmp_path, "--device", "cuda") == 1
    assert "PyTorch sees no CUDA GPU here" in capsys.readouterr().err


def test_a_trained_adapter_classifies_images_as_its_merged_weights_do(prepared, tmp_path, capsys):
    assert fit(prepared, tmp_path) == 0
    folder = run_folder(tmp_path, 1)
    files = ["--adapter", folder / "adapter.safetensors"]
    files += ["--backbone-file", prepared / "backbone.safetensors"]
    images = sorted((prepared / "images/test").rglob("*.png"))
    assert main([str(a) for a in ("predict", *files, *images)]) == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [line[0] for line in lines] == [str(image) for image in images]
    correct = sum(
        name == image.parent.name for image, (_, name, _) in zip(images, lines, strict=True)
    )
    predictions = predictions_of(tmp_path, 1)
    assert correct == predictions.correct
    by_name = sorted(zip(predictions.label, range(10), strict=True), key=lambda e: CLASSES[e[0]])
    expected = [f"{predictions.probability[index]:.4f}" for _, index in by_name]
    assert [probability for _, _, probability in lines] == expected

    merged = tmp_path / "merged.safetensors"
    assert main([str(a) for a in ("merge", *files, "--output", merged)]) == 0
    plain = load_backbone(merged)
    assert plain.config == SHAPE
    changed = [
        name
        for name, value in load_backbone(prepared / "backbone.safetensors").weights.items()
        if not value.equal(plain.weights[name])
    ]
    assert len(changed) == 5
    assert all(name.endswith("in_proj_weight") for name in changed)


def test_an_unreadable_image_is_named(prepared, tmp_path, capsys):
    assert fit(prepared, tmp_path) == 0
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"not a picture")
    adapter = run_folder(tmp_path, 1) / "adapter.safetensors"
    arguments = ["predict", "--adapter", adapter, "--backbone-file",
                 prepared / "backbone.safetensors", broken]  # fmt: skip
    assert main([str(argument) for argument in arguments]) == 1
    assert "broken.png" in capsys.readouterr().err


def test_an_adapter_that_does_not_say_its_logit_scale_is_used_with_a_warning(
    prepared, tmp_path, capsys, caplog
):
    assert fit(prepared, tmp_path) == 0
    path = run_folder(tmp_path, 1) / "adapter.safetensors"
    facts, tensors = read_tensors(path, "adapter file", "", framework="pt")
    assert facts.pop("logit_scale") == 30
    write_tensors(path, tensors, facts)
    image = next((prepared / "images/test").rglob("*.png"))
    files = ["--adapter", path, "--backbone-file", prepared / "backbone.safetensors"]
    assert main([str(argument) for argument in ("predict", *files, image)]) == 0
    assert capsys.readouterr().out.startswith(str(image))
    assert f"{path}: does not say its logit_scale" in caplog.text
