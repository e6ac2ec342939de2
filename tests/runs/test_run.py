"""Runs from files to files, by the command line."""

import csv
import gc
import logging
import re
import shutil
import weakref

import pytest
import torch
import yaml

from blocklora.adapters.adapter import Adapter
from blocklora.adapters.store import load_adapter
from blocklora.backbones.weights import load_backbone
from blocklora.data.manifest import LabelledImage, write_shots
from blocklora.data.pixels import training_pixels
from blocklora.engine.classifier import Classifier
from blocklora.engine.fast import FastEngine
from blocklora.files import file_digest
from blocklora.methods.base import Fit
from blocklora.methods.low_rank import LowRankAdapter
from blocklora.runs.record import HISTORY_COLUMNS
from blocklora.study import places
from tests.runs.small_study import (
    CLASSES,
    METHODS,
    decode,
    files_of,
    fit,
    predictions_of,
    record_of,
    run_folder,
    timeless,
    write_small_study,
    zero_shot,
)
from tests.tiny import SHAPE

BACKBONE = places.backbone("mini-clip")


SHOTS = places.shots_list("own", 2, 1)


STORE = places.shots_pixels("own", 2, 1)


TEST_PIXELS = places.test_pixels("own", 32)


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
        record = record_of(tmp_path, seed)
        assert record["run"] == {
            "backbone": "mini-clip", "dataset": "own", "method": "block_lora", "shots": 2,
            "seed": seed,
        }  # fmt: skip
        cost, made_by = record["cost"], record["provenance"]
        for name, place in (
            ("backbone_sha256", BACKBONE),
            ("shots_sha256", places.shots_list("own", 2, seed)),
            ("pixels_sha256", places.shots_pixels("own", 2, seed)),
        ):
            assert made_by[name] == file_digest(prepared / place)
        keys = {made_by["key"], made_by["fit_digest"]}
        assert record["images"] == {"train_images": 4, "classes": 2}
        for part, images in (("test", 10), ("train", 4)):
            predictions = predictions_of(tmp_path, seed, part)
            assert predictions.images == images
            assert predictions.facts["classnames"] == list(CLASSES)
            assert (predictions.probability >= 0.5).all()
            keys |= {predictions.facts["key"], predictions.facts["test_digest"]}
        assert len(keys) == 6
        # 3 + 2 layers, q k v, rank 4 in 2 blocks, widths 32 and 16.
        assert cost["adapted_matrices"] == 15
        assert cost["trainable_parameters"] == 9 * (2 * 32 + 4 * 32) + 6 * (2 * 16 + 4 * 16)
        assert cost["iterations"] == 6
        assert cost["recorded_steps"] is None  # nothing is recorded on a CPU
        assert cost["adapter_bytes"] == (folder / "adapter.safetensors").stat().st_size
        rows = list(csv.DictReader((folder / "history.csv").open()))
        assert [row["step"] for row in rows] == ["2", "4", "6"]
        backbone = load_backbone(prepared / BACKBONE)
        adapter = load_adapter(folder / "adapter.safetensors", backbone.sha256)
        assert adapter.trainable_parameters == cost["trainable_parameters"]
    assert not list((tmp_path / "cache/unfinished").glob("*"))


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
        record_of(tmp_path / name, 1)["cost"]["planned_memory_bytes"]
        for name in ("undisturbed", "disturbed")
    ]
    assert planned[0] is None
    assert planned[1] > 0
    for (_, ours), (_, theirs) in zip(
        *(load_adapter(folder / "adapter.safetensors").updates() for folder in folders), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=0.02, atol=0.02 * theirs.abs().max().item())


def test_one_engine_at_most_is_alive(prepared, tmp_path, monkeypatch):
    """That of a finished fit is kept for the next one with its setting, and no other beside it.

    The loss of the first seed is not finite; its error must not keep its tensors either.
    """
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
        assert fit(prepared, tmp_path, (1, 2), "block_lora", "--methods", *METHODS) == 1
    finally:
        gc.enable()
    # The engines of both seeds, and a test of the second; then the same for the other method.
    assert alive == [0, 0, 1] * 2


@pytest.mark.parametrize("recorded", [True, False])
def test_the_record_says_whether_steps_were_recorded(prepared, tmp_path, monkeypatch, recorded):
    monkeypatch.setattr(FastEngine, "recorded", recorded)
    assert fit(prepared, tmp_path) == 0
    assert record_of(tmp_path, 1)["cost"]["recorded_steps"] is recorded


def test_a_run_says_how_long_it_took_to_its_first_step(prepared, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    assert fit(prepared, tmp_path) == 0
    assert re.search(r"ready for its first step after \d+\.\d s", caplog.text)


def named_method(prepared, name):
    return yaml.safe_load((prepared / "small.yaml").read_text())["methods"][name]


def test_both_engines_are_told_apart_and_agree_without_dropout(prepared, tmp_path):
    changes = {"block_lora": {**named_method(prepared, "block_lora"), "dropout": 0}}
    changes["zero_shot"] = named_method(prepared, "zero_shot")
    adapters = []
    for engine in ("fast", "reference"):
        folder = tmp_path / engine
        folder.mkdir()
        write_small_study(folder / "small.yaml", prepared / "images", methods=changes)
        # They share a cache, and neither takes the fit of the other.
        more = ("--engine", engine, "--cache", tmp_path / "cache")
        assert fit(prepared, folder, (1,), "block_lora", *more) == 0
        assert record_of(folder, 1)["provenance"]["engine"] == engine
        adapters.append(load_adapter(run_folder(folder, 1) / "adapter.safetensors"))
    for (_, ours), (_, theirs) in zip(*(a.updates() for a in adapters), strict=True):
        assert (ours - theirs).norm() < 0.02 * theirs.norm()


def test_a_method_may_learn_without_steps(prepared, tmp_path, monkeypatch):
    def fit_at_once(self, config, recipe, task, shots, compute, keeper):
        adapter = Adapter.initialise(config, SHAPE.tower_shapes, torch.Generator())
        classifier = self.classifier(adapter, recipe, task, compute.device, compute.precision)
        pixels = training_pixels(shots.images, SHAPE.image_size, workers=1)
        features = torch.cat([*classifier.features(pixels)])
        assert features.shape == (4, SHAPE.embed_dim)
        torch.testing.assert_close(features.norm(dim=-1), torch.ones(4))
        return Fit(adapter, None, {})

    monkeypatch.setattr(LowRankAdapter, "fit", fit_at_once)
    assert fit(prepared, tmp_path) == 0
    folder = run_folder(tmp_path, 1)
    cost = record_of(tmp_path, 1)["cost"]
    assert (cost["step_seconds"], "iterations" in cost) == (None, False)
    assert cost["training_seconds"] > 0
    assert (folder / "history.csv").read_text().splitlines() == [",".join(HISTORY_COLUMNS)]
    assert predictions_of(tmp_path, 1).images == 10


def test_a_finished_run_is_left_as_it_is(prepared, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    assert fit(prepared, tmp_path) == 0
    record = run_folder(tmp_path, 1) / "fit.json"
    before = record.stat().st_mtime_ns
    assert fit(prepared, tmp_path) == 0
    assert record.stat().st_mtime_ns == before
    assert "block_lora/2shot/seed1: already finished" in caplog.text


@pytest.mark.parametrize("file", ["fit.json", "adapter.safetensors", "history.csv"])
def test_a_result_cut_short_comes_from_the_cache_or_is_made_again(prepared, tmp_path, caplog, file):
    caplog.set_level(logging.INFO)
    assert fit(prepared, tmp_path) == 0
    before, expected = files_of(run_folder(tmp_path, 1)), timeless(run_folder(tmp_path, 1))
    path = run_folder(tmp_path, 1) / file
    for cache, fitted in (("cache", False), ("other", True)):
        if file == "history.csv":
            path.unlink()
        else:
            path.write_bytes(before[file][: len(before[file]) // 2])
        caplog.clear()
        assert fit(prepared, tmp_path, (1,), "block_lora", "--cache", tmp_path / cache) == 0
        assert ("fitted in" in caplog.text) == fitted
        assert (files_of(run_folder(tmp_path, 1)) == before) == (not fitted)
        assert timeless(run_folder(tmp_path, 1)) == expected


def replace(place, content):
    """Return a function that puts something else at a place of the results."""

    def put(results):
        (results / place).unlink()
        if content:
            shutil.copy(results / content, results / place)

    return put


def shorten_list(results):
    write_shots(results / SHOTS, [LabelledImage("train/red cat/0.png", 0, CLASSES[0], "train")])


@pytest.mark.parametrize(
    ("damage", "more", "message"),
    [
        (
            None,
            ("--methods", "zero_shot"),
            "there is no fitted method 'zero_shot' (there are:",
        ),
        (None, ("--backbone", "other"), "there is no backbone 'other' (there are: mini-clip)"),
        (None, ("--dataset", "other"), "there is no dataset 'other' (there are: own)"),
        (replace(BACKBONE, None), (), "mini-clip.safetensors: no such file"),
        (replace(TEST_PIXELS, STORE), (), "test-32px.npy"),
        (replace(STORE, places.shots_pixels("own", 2, 2)), (), "holds other images than"),
        (shorten_list, (), "holds other images than"),
    ],
)
def test_unusable_inputs_end_with_one_line_and_no_output(
    prepared, tmp_path, capsys, damage, more, message
):
    if damage:
        shutil.copytree(prepared, tmp_path / "results")
        damage(tmp_path / "results")
    assert fit(prepared, tmp_path, (1,), "block_lora", *more) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("blocklora fit: error: ")
    assert message in error
    assert not (tmp_path / "results/runs").exists()
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_a_class_without_training_images_is_named(prepared, tmp_path, capsys):
    results = tmp_path / "results"
    shutil.copytree(prepared, results)
    shorten_list(results)
    (results / STORE).unlink()
    decode(results, "--shots-lists", results / SHOTS, "--output", results / STORE)
    assert fit(prepared, tmp_path) == 1
    assert 'the class "dog\'s $(house)" has no training image' in capsys.readouterr().err


def test_a_gpu_that_is_not_there_is_refused(prepared, tmp_path, capsys):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert zero_shot(prepared, tmp_path, "--device", "cuda") == 1
    assert "PyTorch can use no GPU here" in capsys.readouterr().err
