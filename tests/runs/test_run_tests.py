"""Tests of runs from files to files, by the command line."""

import weakref
from pathlib import Path

import pytest
import torch

from blocklora.cli import main
from blocklora.data.pixels import training_pixels
from blocklora.engine.classifier import Classifier
from blocklora.engine.fast import FastEngine
from blocklora.runs.predictions import read_predictions
from tests.runs.small_study import (
    arguments_of,
    fit,
    predictions_of,
    run_folder,
    timeless,
    zero_shot,
)


def test_a_test_without_enough_memory_gives_up_the_kept_engine(prepared, tmp_path, monkeypatch):
    """The next fit makes a new one, and all results are as they would have been."""
    assert fit(prepared, tmp_path / "undisturbed", (1, 2)) == 0
    engines, alive = [], []
    prepare, encode = FastEngine.__init__, Classifier._encode

    def noted(self, *arguments, **options):
        engines.append(weakref.ref(self))
        prepare(self, *arguments, **options)

    def fail_once(self, images):
        alive.append(engines[-1]() is not None)
        if len(alive) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.59 GiB.")
        return encode(self, images)

    monkeypatch.setattr(FastEngine, "__init__", noted)
    monkeypatch.setattr(Classifier, "_encode", fail_once)
    assert fit(prepared, tmp_path / "disturbed", (1, 2)) == 0
    # The failure, the two tests of the first run, and those of the second.
    assert alive == [True, False, False, True, True]
    assert len(engines) == 2
    for seed in (1, 2):
        folders = [run_folder(tmp_path / name, seed) for name in ("undisturbed", "disturbed")]
        assert timeless(folders[0]) == timeless(folders[1])


@pytest.mark.parametrize(("workers", "threads"), [(0, 1), (1, 1), (3, 3)])
def test_training_images_are_prepared_for_a_test_by_the_workers(
    prepared, tmp_path, monkeypatch, workers, threads
):
    used = []

    def noted(images, size, workers):
        used.append(workers)
        return training_pixels(images, size, workers)

    monkeypatch.setattr("blocklora.runs.task.training_pixels", noted)
    assert fit(prepared, tmp_path, (1,), "block_lora", "--workers", workers) == 0
    assert used == [threads]


def test_zero_shot_leaves_predictions_alone(prepared, tmp_path):
    assert zero_shot(prepared, tmp_path) == 0
    folder = tmp_path / "results/runs/mini-clip/own/zero_shot/0shot/seed0"
    files = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    assert files == [Path("tests/own/test.safetensors")]
    predictions = read_predictions(folder / files[0])
    assert (predictions.images, predictions.facts["run"]["method"]) == (10, "zero_shot")


@pytest.mark.parametrize("method", ["zero_shot", "block_lora"])
def test_shots_and_seeds_go_with_methods_that_are_fitted(prepared, tmp_path, capsys, method):
    more = ["--shots", 2, "--seeds", 1] if method == "zero_shot" else []
    assert zero_shot(prepared, tmp_path, "--method", method, *more) == 1
    assert "--shots and --seeds" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--fitted-on", "own"], "method zero_shot is not fitted: it has no --fitted-on"),
        (
            ["--method", "block_lora", "--shots", 2, "--seeds", 1, "--fitted-on", "owm"],
            "there is no dataset 'owm'; did you mean own?",
        ),
    ],
)
def test_fitted_on_is_a_dataset_of_a_fitted_method(prepared, tmp_path, capsys, more, message):
    assert zero_shot(prepared, tmp_path, *more) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "results/runs").exists()


def test_each_test_records_its_own_energy(prepared, tmp_path, monkeypatch):
    drawn = []
    predict = Classifier.predict

    def draw(self, images):
        drawn.append(len(images))
        return predict(self, images)

    monkeypatch.setattr(Classifier, "predict", draw)
    for module in ("energy", "device"):
        monkeypatch.setattr(f"blocklora.runs.{module}.energy_joules", lambda device: sum(drawn))
    assert fit(prepared, tmp_path) == 0
    for part in ("test", "train"):
        predictions = predictions_of(tmp_path, 1, part)
        assert predictions.facts["energy_joules"] == predictions.images


def again(prepared, folder, *more):
    arguments = arguments_of("test", prepared, folder)
    arguments += ["--method", "block_lora", "--shots", 2, "--seeds", 1, *more]
    return main([str(argument) for argument in arguments])


def test_a_fit_is_tested_afterwards_as_at_once(prepared, tmp_path):
    assert fit(prepared, tmp_path) == 0
    before = timeless(run_folder(tmp_path, 1))
    record = run_folder(tmp_path, 1) / "fit.json"
    modified = record.stat().st_mtime_ns
    (run_folder(tmp_path, 1) / "tests/own/test.safetensors").unlink()
    assert again(prepared, tmp_path, "--cache", tmp_path / "other") == 0
    assert timeless(run_folder(tmp_path, 1)) == before
    assert record.stat().st_mtime_ns == modified


def test_a_test_without_a_fit_is_refused(prepared, tmp_path, capsys):
    assert again(prepared, tmp_path) == 1
    assert "block_lora/2shot/seed1: there is no fit by this study" in capsys.readouterr().err
