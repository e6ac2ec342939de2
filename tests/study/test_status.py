import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from blocklora.cli import main
from blocklora.fields import to_values
from blocklora.locks import hold
from blocklora.runs.predictions import Predictions, write_predictions
from blocklora.runs.record import failure_log, why_missing
from blocklora.runs.status import study_status, what_is_missing
from blocklora.study.digests import fit_code, fit_digest
from blocklora.study.digests import test_digest as digest_of_test
from blocklora.study.run import Run
from blocklora.study.study import load_study
from blocklora.tensorfiles import write_tensors

CLIP = "ViT-B-16-quickgelu"


class Results:
    """A folder of results, made by hand as the workflow leaves it."""

    def __init__(self, study_path: Path, folder: Path):
        self.study = load_study(study_path)
        self.folder = folder
        self.cache = folder.with_name("cache")
        self.arguments = ["status", "--study", str(study_path), "--results", str(folder)]
        self.arguments += ["--cache", str(self.cache)]

    def run(self, dataset="dtd", method="block_lora", shots=1, seed=1):
        return Run(CLIP, dataset, method, shots, seed)

    def finish(self, seconds, **which):
        run = self.run(**which)
        named, made_by = self.study.methods[run.method], {"precision": "fp32", "engine": "fast"}
        record = {
            "method": named.values,
            "recipe": to_values(named.recipe),
            "cost": {"training_seconds": seconds - 2, "adapter_bytes": len("weights")},
            "provenance": made_by
            | {
                "key": "k" * 64,
                "fit_digest": fit_digest(self.study, run, *made_by.values()),
                "code_digest": fit_code(named.kind, "fast"),
            },
        }
        folder = f"runs/{run.folder}"
        self.write(f"{folder}/adapter.safetensors", "weights")
        self.write(f"{folder}/history.csv")
        self.write(f"{folder}/fit.json", json.dumps(record))
        for test in run.own_tests:
            digest = digest_of_test(self.study, test, *made_by.values())
            facts = made_by | {"key": "t" * 64, "test_digest": digest, "seconds": 1}
            path = self.folder / "runs" / test.file
            write_predictions(path, Predictions(np.zeros(1), np.zeros(1), np.ones(1), facts))

    def change_record(self, change):
        path = self.folder / "runs" / self.run().folder / "fit.json"
        record = json.loads(path.read_text())
        change(record)
        path.write_text(json.dumps(record))

    def why_missing(self, precision="fp32", engine="fast"):
        return why_missing(self.study, self.run(), self.folder / "runs", precision, engine)

    def write(self, path, text=""):
        file = self.folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return file

    def unfinished(self, name):
        path = self.cache / "unfinished" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def hold(self, **which):
        run = self.run(**which)
        return hold(self.unfinished(f"key-{run.seed}.lock"), f"run {run.folder}")

    def of(self, **which):
        run = self.run(**which)
        return next(s for s in study_status(self.study, self.folder, self.cache) if s.run == run)


@pytest.fixture
def results(write, tmp_path):
    return Results(write(), tmp_path / "results")


def test_a_study_not_begun_is_missing_as_a_whole(results, capsys):
    assert main(results.arguments) == 0
    last = capsys.readouterr().out.splitlines()[-1].split()
    # Two datasets with one zero-shot and 2 × 2 trained runs each.
    assert last == ["all", "0", "0", "0", "10", "0:00:00", "?"]


def test_time_left_is_the_median_of_runs_like_it(results):
    for seconds, dataset in ((100, "dtd"), (700, "eurosat")):
        results.finish(seconds, dataset=dataset, seed=1)
    done = results.of(seed=1)
    assert (done.state, done.spent_seconds, done.left_seconds) == ("done", 100, 0)
    assert results.of(seed=2).left_seconds == 100
    assert results.of(dataset="eurosat", seed=2).left_seconds == 700
    assert results.of(shots=4).left_seconds is None


def test_a_dataset_without_finished_runs_is_expected_to_be_like_the_others(results):
    results.finish(100, seed=1)
    results.finish(300, seed=2)
    assert results.of(dataset="eurosat").left_seconds == 200


def test_a_locked_run_is_running_and_its_checkpoint_says_how_far(results):
    results.finish(100, seed=2)
    facts = {"run": results.run().folder, "step": 120, "seconds": 30.0}
    write_tensors(results.unfinished("key.safetensors"), {"x": np.zeros(1)}, facts)
    results.write(f"logs/fit/{CLIP}/dtd.log", "run: step 100")
    with results.hold():
        status = results.of()
    assert status.state == "running"
    assert status.why.startswith("process ")
    assert status.why.endswith("; at step 120 of 500")
    assert (status.spent_seconds, status.left_seconds) == (30, 70)


def leave_lock(results, name):
    """Leave the lock of a killed process behind, and return its number."""
    lock = results.unfinished("key-1.lock")
    with results.hold():
        facts = json.loads(lock.read_text())
    process = subprocess.Popen(["true"])
    process.wait()
    results.unfinished(name).write_text(json.dumps(facts | {"pid": process.pid}))
    return process.pid


@pytest.mark.parametrize("name", ["key-0.lock", "key-2.lock"])
def test_the_lock_of_a_killed_process_does_not_hide_a_running_one(results, name):
    leave_lock(results, name)
    with results.hold():
        assert results.of().state == "running"


def test_locks_and_checkpoints_beside_the_results_count_if_the_cache_is_read_only(results):
    results.cache = results.folder
    with results.hold():
        results.cache = results.folder.with_name("cache")
        assert results.of().state == "running"


def test_the_newest_checkpoint_of_an_interrupted_run_says_how_far_it_is(results):
    for name, step, age in (("b", 120, 0), ("a", 60, 100), ("c", 480, 200)):
        facts = {"run": results.run().folder, "step": step, "seconds": 30.0}
        path = results.unfinished(f"{name}.safetensors")
        write_tensors(path, {"x": np.zeros(1)}, facts)
        os.utime(path, (path.stat().st_mtime - age,) * 2)
    status = results.of()
    assert (status.state, status.why) == ("missing", "interrupted at step 120 of 500")


def test_predictions_of_an_engine_that_is_not_there_do_not_count(results):
    results.finish(100)
    test = results.run().own_tests[0]
    facts = {"precision": "fp32", "engine": "warp", "seconds": 1}
    path = results.folder / "runs" / test.file
    write_predictions(path, Predictions(np.zeros(1), np.zeros(1), np.ones(1), facts))
    assert results.of().why == "its engine warp is not known to this version"


def test_a_killed_process_leaves_a_lock_that_says_which_run_failed(results):
    number = leave_lock(results, "key-1.lock")
    status = results.of()
    assert status.state == "failed"
    assert status.why.startswith(f"process {number} on ")
    assert "the job was probably killed" in status.why
    assert results.of(seed=2).state == "missing"


def test_a_failed_run_tells_the_error_in_its_log_of_failures(results):
    run = results.run(shots=4)
    log = f"blocklora fit: error: run {run.folder}: the loss\nof step 11 is nan\n"
    results.write(failure_log(run), log)
    results.write(f"logs/fit/{CLIP}/dtd.log", f"run x: fitted in 3 s\n{log}")
    status = results.of(shots=4)
    assert status.state == "failed"
    assert status.why == f"fit: run {run.folder}: the loss of step 11 is nan"
    assert results.of(shots=4, seed=2).state == "missing"
    with results.hold(shots=4):
        assert results.of(shots=4).state == "running"


def test_a_test_that_another_process_does_is_running(results):
    folder = f"{CLIP}/dtd/zero_shot/0shot/seed0"
    with hold(results.unfinished("key.lock"), f"test of {folder}/tests/dtd/test.safetensors"):
        assert results.of(method="zero_shot", shots=0, seed=0).state == "running"


def test_an_earlier_step_that_failed_is_the_reason_for_all_its_runs(results, capsys):
    results.write("logs/verify_data/eurosat.log", "12 images\nblocklora verify-data: error: no.jpg")
    assert results.of(dataset="eurosat").why == "verify-data: no.jpg"
    assert results.of(dataset="dtd").state == "missing"
    main(results.arguments)
    text = capsys.readouterr().out
    assert f"failed: {CLIP}/eurosat/zero_shot/0shot/seed0 and 4 more\n  verify-data: no.jpg" in text


def test_a_step_that_succeeded_in_the_end_is_no_reason(results):
    results.write("logs/verify_data/eurosat.log", "12 images, all well")
    assert results.of(dataset="eurosat").state == "missing"


def test_a_traceback_is_told_by_its_last_line(results):
    log = 'Traceback (most recent call last):\n  File "x.py"\nMemoryError: 3 GB\n'
    path = results.write(f"logs/test/{CLIP}/dtd/zero_shot.log", log)
    status = results.of(method="zero_shot", shots=0, seed=0)
    assert (status.state, status.why) == ("failed", f"{path}: MemoryError: 3 GB")


def test_the_last_error_of_a_dataset_counts_and_those_of_other_steps_do_not(results):
    older = results.write("logs/make_manifest/dtd.log", "blocklora make-manifest: error: old")
    os.utime(older, (1, 1))
    results.write("logs/decode_test/dtd-224px.log", "blocklora decode-images: error: new")
    results.write("logs/tables.log", "blocklora publish: error: no runs")
    results.write(f"logs/figure/{CLIP}/accuracy.log", "blocklora figure: error: no runs")
    assert results.of().why == "decode-images: new"
    assert results.of(dataset="eurosat").why == "not begun"


@pytest.mark.parametrize("log", ["shots/dtd", "decode_shots/dtd"])
def test_a_step_before_all_fits_of_a_dataset_is_the_reason_for_them(results, log):
    results.write(f"logs/{log}.log", "blocklora shots: error: no image\n")
    assert results.of().why == "shots: no image"
    assert results.of(dataset="eurosat").why == "not begun"


def test_a_changed_study_says_what_changed(results, document, write):
    results.finish(100)
    assert results.why_missing() is None
    assert results.of().state == "done"
    document["methods"]["block_lora"] |= {"dropout": 0.5, "rank": 8}
    document["recipe"]["batch_size"] = 16
    changed = Results(write(), results.folder)
    said = "rank is 8, was 4; dropout is 0.5, was 0.25; batch_size is 16, was 32"
    assert changed.why_missing() == said
    assert (changed.of().state, changed.of().why) == ("missing", said)


def test_a_changed_configuration_says_what_changed(results):
    results.finish(100)
    assert results.why_missing("bf16") == "precision is bf16, was fp32"
    assert results.why_missing(engine="reference") == "engine is reference, was fast"


@pytest.mark.parametrize(
    ("file", "why"),
    [
        ("fit.json", "not fitted"),
        ("history.csv", "not fitted"),
        ("adapter.safetensors", "not fitted"),
        ("tests/dtd/test.safetensors", "not tested"),
        ("tests/dtd/train.safetensors", "not tested"),
    ],
)
def test_a_run_without_one_of_its_files_is_missing(results, file, why):
    results.finish(100)
    (results.folder / "runs" / results.run().folder / file).unlink()
    assert results.why_missing() == why


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda r: r["cost"].update(adapter_bytes=9), "its files are damaged"),
        (
            lambda r: r["provenance"].update(fit_digest="old", code_digest="old"),
            "the code that fits has changed",
        ),
        (
            lambda r: r["provenance"].update(fit_digest="old"),
            "its images, or the code that reads and draws them, have changed",
        ),
        (lambda r: r.pop("recipe"), None),  # is not looked at where the digest is the same
        (
            lambda r: r["provenance"].pop("fit_digest") and r.pop("recipe"),
            "its record was",
        ),
    ],
)
def test_a_record_that_does_not_count_is_told_in_words(results, change, why):
    results.finish(100)
    results.change_record(change)
    found = results.why_missing()
    assert found is None if why is None else found.startswith(why)


def test_a_study_says_how_much_of_it_is_missing_and_why(results, document, write):
    results.finish(100)
    results.finish(100, seed=2)
    document["methods"]["block_lora"]["dropout"] = 0.5
    study = Results(write(), results.folder).study
    assert what_is_missing(study, results.folder / "runs", "fp32", "fast").splitlines() == [
        "Study small: 0 of 10 runs are finished.",
        "  2 of zero_shot: not tested",
        "  2 of block_lora: dropout is 0.5, was 0.25",
        "  6 of block_lora: not fitted",
    ]


@pytest.mark.parametrize("content", ['{"cost"', "[]", '{"cost": {}, "provenance": {}}'])
def test_a_damaged_record_does_not_count_and_is_named(results, content):
    results.finish(100)
    path = results.write(f"runs/{results.run().folder}/fit.json", content)
    assert results.of().state == "missing"
    assert str(path.parent) in results.of().why


def test_json_lists_every_run(results, capsys):
    results.finish(100)
    assert main([*results.arguments, "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert len(listed) == 10
    assert listed[1] == {
        "backbone": CLIP, "dataset": "dtd", "method": "block_lora", "shots": 1, "seed": 1,
        "state": "done", "why": "", "spent_seconds": 100.0, "expected_seconds": 100.0,
        "left_seconds": 0.0,
    }  # fmt: skip


def test_status_needs_no_torch(results):
    code = (
        "import sys; from blocklora.cli import main\n"
        f"main({results.arguments!r}); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
