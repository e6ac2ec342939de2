"""Runs that share a process, and studies that share a cache."""

import logging
import shutil
import subprocess
import sys
import threading
import weakref
from time import sleep

import pytest
import torch
import yaml

from blocklora import locks
from blocklora.cache import Cache
from blocklora.cli import main
from blocklora.engine.fast import FastEngine
from blocklora.engine.reference import ReferenceEngine
from blocklora.locks import hold
from blocklora.runs import device, job
from blocklora.runs.fit import run_tests
from blocklora.runs.record import failure_log
from blocklora.study.run import Run
from tests.runs.small_study import (
    METHODS,
    arguments_of,
    files_of,
    fit,
    record_of,
    run_folder,
    timeless,
    write_small_study,
    zero_shot,
)


@pytest.mark.parametrize("engine", [FastEngine, ReferenceEngine])
def test_a_fit_after_others_equals_the_same_fit_alone_to_the_bit(
    prepared, tmp_path, monkeypatch, engine
):
    made, prepare = [], engine.__init__

    def noted(self, *arguments, **options):
        made.append(self)
        prepare(self, *arguments, **options)

    monkeypatch.setattr(engine, "__init__", noted)
    name = "fast" if engine is FastEngine else "reference"
    more = ("--engine", name, "--shots")
    assert fit(prepared, tmp_path / "together", (1, 2), "block_lora", *more, 1, 2) == 0
    assert len(made) == 1  # four fits, other seeds and other shots, by one engine
    for shots, seed in ((1, 2), (2, 2)):
        assert fit(prepared, tmp_path / "alone", (seed,), "block_lora", *more, shots) == 0
        folders = [run_folder(tmp_path / n, seed, shots=shots) for n in ("together", "alone")]
        assert timeless(folders[0]) == timeless(folders[1])
    assert len(made) == 3


def test_a_run_that_fails_does_not_keep_the_others_from_being_fitted(
    prepared, tmp_path, monkeypatch, capsys
):
    step = FastEngine.step

    def spoiled(self, *inputs):
        loss, correct = step(self, *inputs)
        return (loss if self.seed == 2 else loss * float("nan")), correct

    with monkeypatch.context() as patch:
        patch.setattr(FastEngine, "step", spoiled)
        assert fit(prepared, tmp_path, (1, 2), "block_lora", "--methods", *METHODS) == 1
    error = capsys.readouterr().err.partition("blocklora fit: error: ")[2].splitlines()
    assert ["seed1" in line for line in error] == [True, True]
    for method in METHODS:
        assert not run_folder(tmp_path, 1, method).exists()
        assert run_folder(tmp_path, 2, method).joinpath("fit.json").exists()
    logs = {method: failure_log_of(tmp_path, method) for method in METHODS}
    logged = {log.read_text().partition("error: ")[2].strip() for log in logs.values()}
    assert logged == {*error}
    assert fit(prepared, tmp_path, (1,), "block_lora") == 0
    assert [log.exists() for log in logs.values()] == [True, False]
    # An error that is no fault of the user's has its name.
    with monkeypatch.context() as patch:
        patch.setattr(FastEngine, "step", lambda self, *inputs: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            fit(prepared, tmp_path, (1,), "clip_lora")
    said = "blocklora fit: error: ZeroDivisionError: division by zero\n"
    assert logs["clip_lora"].read_text() == said


def test_auto_and_the_precision_of_the_device_are_the_same_run(prepared, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    assert fit(prepared, tmp_path) == 0
    assert record_of(tmp_path, 1)["provenance"]["precision"] == "fp32"
    for precision in ("auto", "fp32"):
        caplog.clear()
        assert fit(prepared, tmp_path, (1,), "block_lora", "--precision", precision) == 0
        assert "seed1: already finished" in caplog.text


def test_a_gpu_that_fails_ends_the_job_in_one_line_and_keeps_what_is_done(
    prepared, tmp_path, monkeypatch, capsys, caplog
):
    """Since every further run would fail in the same way."""
    caplog.set_level(logging.INFO)
    step = FastEngine.step

    def fail_later(self, images, labels, number, scaler):
        if self.seed == 2 and number == 3:
            raise torch.AcceleratorError("CUDA error: device is lost\nCompile with what helps.")
        return step(self, images, labels, number, scaler)

    more = ("--methods", "clip_lora", "--checkpoint-seconds", 0)
    with monkeypatch.context() as patch:
        patch.setattr(FastEngine, "step", fail_later)
        assert fit(prepared, tmp_path, (1, 2), "block_lora", *more) == 1
    (said,) = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    failed, finished = (Run("mini-clip", "own", "block_lora", 2, seed) for seed in (2, 1))
    assert f"error: run {failed.folder}: the GPU failed (CUDA error: device is lost); " in said
    (log,) = (tmp_path / "results/logs/failed").rglob("*.log")
    assert log == tmp_path / "results" / failure_log(failed)
    assert log.read_text() == f"{said}\n"
    assert run_folder(tmp_path, 1).joinpath("fit.json").exists()
    assert not run_folder(tmp_path, 1, "clip_lora").exists()
    assert fit(prepared, tmp_path, (1, 2), "block_lora", *more) == 0
    assert f"run {finished.folder}: already finished" in caplog.text
    assert f"{failed.folder}: continued from step 3" in caplog.text


def test_a_run_whose_memory_ran_out_leaves_no_tensor_to_the_next(
    prepared, tmp_path, monkeypatch, capsys
):
    left = []

    def run_out(job, run, keys):
        if run.seed == 1:
            tensor = torch.ones(1)
            left.append(weakref.ref(tensor))
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        left.append(left[0]())
        return run_tests(job, run, keys)

    monkeypatch.setattr("blocklora.runs.fit.run_tests", run_out)
    assert fit(prepared, tmp_path, (1, 2)) == 1
    assert left[1:] == [None]
    assert run_folder(tmp_path, 2).joinpath("tests/own/test.safetensors").exists()
    (said,) = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert "seed1: memory ran out (CUDA out of memory. Tried to allocate 2.00 GiB.); let" in said


def test_a_test_on_a_failing_gpu_ends_in_one_line(prepared, tmp_path, monkeypatch, capsys):
    def fail(job, run, keys):
        raise torch.AcceleratorError("CUDA error: device is lost\nCompile with what helps.")

    monkeypatch.setattr("blocklora.runs.fit.run_tests", fail)
    assert zero_shot(prepared, tmp_path) == 1
    (said,) = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert "/zero_shot/0shot/seed0/tests/own/test.safetensors: the GPU failed (CUDA err" in said


def test_a_job_sets_up_its_device_once_with_its_share_of_a_gpu(prepared, tmp_path, monkeypatch):
    calls = []

    def claim(*arguments):
        calls.append(arguments)
        return 2

    monkeypatch.setattr(job, "claim_gpu", claim)
    monkeypatch.setattr(device, "require_device", lambda *arguments: calls.append(arguments))
    assert fit(prepared, tmp_path, (1, 2), "block_lora", "--gpu-jobs", 3) == 0
    assert calls == [("cpu", 3), ("cpu", "fp32", 2)]


def failure_log_of(folder, method):
    run = Run("mini-clip", "own", method, 2, 1)
    (log,) = (folder / "results/logs/failed").glob(f"*/*/{method}/*/seed1.log")
    assert log == folder / "results" / failure_log(run)
    return log


def test_fits_that_the_cache_cannot_keep_stay_in_checkpoints_until_all_are_finished(
    prepared, tmp_path, monkeypatch, caplog
):
    """Since a workflow that sees one run fail removes the files of all."""
    caplog.set_level(logging.INFO)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache/fits").write_text("a file where the folder should be")
    with monkeypatch.context() as patch:
        step = FastEngine.step
        patch.setattr(
            FastEngine,
            "step",
            lambda self, *inputs: (step(self, *inputs)[0] / (2 - self.seed), torch.tensor(0)),
        )
        assert fit(prepared, tmp_path, (1, 2)) == 1
    expected = (run_folder(tmp_path, 1) / "adapter.safetensors").read_bytes()
    assert len(list((tmp_path / "cache/unfinished").iterdir())) == 1
    shutil.rmtree(tmp_path / "results/runs")
    assert fit(prepared, tmp_path, (1, 2)) == 0
    assert "block_lora/2shot/seed1: continued from step 6" in caplog.text
    assert (run_folder(tmp_path, 1) / "adapter.safetensors").read_bytes() == expected
    assert list((tmp_path / "cache/unfinished").iterdir()) == []


def test_a_run_that_another_process_is_at_comes_last(prepared, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(locks, "WAITING_SECONDS", 0.02)
    assert fit(prepared, tmp_path / "first") == 0
    key, second = record_of(tmp_path / "first", 1)["provenance"]["key"], tmp_path / "second"
    held, order = threading.Event(), []

    def other_process():
        with hold(second / "cache/unfinished" / f"{key}.lock", "run of another process"):
            held.set()
            while not run_folder(second, 2).joinpath("tests/own/train.safetensors").exists():
                sleep(0.01)
            order.append(run_folder(second, 1).exists())

    thread = threading.Thread(target=other_process)
    thread.start()
    held.wait()
    assert fit(prepared, second, (1, 2)) == 0
    thread.join()
    assert order == [False]
    assert "seed1: another process works on it, so others come first" in caplog.text
    assert timeless(run_folder(second, 1)) == timeless(run_folder(tmp_path / "first", 1))


def test_a_second_study_computes_nothing_that_the_first_one_did(prepared, tmp_path):
    """It does not even import what it would compute with."""
    first, second = tmp_path / "first", tmp_path / "second"
    shared = ("--cache", tmp_path / "cache")
    assert zero_shot(prepared, first, *shared) == 0
    assert fit(prepared, first, (1, 2), "block_lora", *shared) == 0
    second.mkdir()
    write_small_study(second / "another.yaml", prepared / "images", title="Another study")
    calls = [
        [*map(str, [*arguments_of(command, prepared, second), *shared, *more])]
        for command, *more in (
            ("test", "--method", "zero_shot"),
            ("fit", "--methods", "block_lora"),
        )
    ]
    code = (
        "import sys; from blocklora.cli import main\n"
        f"assert [main(call) for call in {calls!r}] == [0, 0]\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "fitted in" not in done.stderr
    assert done.stderr.count("took its fit from the cache") == 2
    made = files_of(first / "results/runs")
    assert len(made) == 1 + 2 * 5
    assert files_of(second / "results/runs") == made


def test_cached_runs_name_no_study(prepared, tmp_path):
    write_small_study(tmp_path / "unmistakable.yaml", prepared / "images")
    assert fit(prepared, tmp_path) == 0
    kept = [*files_of(tmp_path / "results/runs").values(), *files_of(tmp_path / "cache").values()]
    assert len(kept) == 5 + (3 + 1) + 2 * (1 + 1)
    assert not [content for content in kept if b"unmistakable" in content]
    assert sorted(entry.kind for entry in Cache(tmp_path / "cache").entries()) == [
        "fits",
        "tests",
        "tests",
    ]


def test_a_study_with_one_more_method_fits_that_one_alone(prepared, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    methods = yaml.safe_load((prepared / "small.yaml").read_text())["methods"]
    study = tmp_path / "small.yaml"
    write_small_study(study, prepared / "images", methods=methods)
    arguments = [str(a) for a in arguments_of("fit", prepared, tmp_path)]
    assert main(arguments) == 0
    assert caplog.text.count("fitted in") == 2 * len(METHODS)
    methods["wide"] = {**methods["block_lora"], "rank": 8}
    write_small_study(study, prepared / "images", methods=methods)
    caplog.clear()
    assert main(arguments) == 0
    fitted = [line for line in caplog.messages if "fitted in" in line]
    assert ["own/wide/2shot" in line for line in fitted] == [True, True]
