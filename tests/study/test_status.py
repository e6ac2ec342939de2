import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from blocklora.cli import main
from blocklora.runs.lock import hold
from blocklora.runs.predictions import Predictions, write_predictions
from blocklora.runs.status import study_status
from blocklora.study.digests import fit_digest
from blocklora.study.digests import test_digest as digest_of_test
from blocklora.study.model import Run, load_study

CLIP = "ViT-B-16-quickgelu"


class Results:
    """A folder of results, made by hand as the workflow leaves it."""

    def __init__(self, study_path: Path, folder: Path):
        self.study = load_study(study_path)
        self.folder = folder
        self.arguments = ["status", "--study", str(study_path), "--results", str(folder)]

    def run(self, dataset="dtd", method="block_lora", shots=1, seed=1):
        return Run(CLIP, dataset, method, shots, seed)

    def finish(self, seconds, **which):
        run = self.run(**which)
        made_by = {"precision": "fp32", "engine": "fast"}
        digest = fit_digest(self.study, run, *made_by.values())
        record = {
            "cost": {"training_seconds": seconds - 2},
            "provenance": made_by | {"fit_digest": digest},
        }
        self.write(f"runs/{run.folder}/fit.json", json.dumps(record))
        for test in run.own_tests:
            digest = digest_of_test(self.study, test, *made_by.values())
            facts = made_by | {"test_digest": digest, "seconds": 1}
            path = self.folder / "runs" / test.file
            write_predictions(path, Predictions(np.zeros(1), np.zeros(1), np.ones(1), facts))

    def write(self, path, text=""):
        file = self.folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return file

    def checkpoint(self, suffix, **which):
        digest = fit_digest(self.study, self.run(**which), "bf16", "fast")
        path = self.folder / f"checkpoints/{digest}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def of(self, **which):
        run = self.run(**which)
        return next(s for s in study_status(self.study, self.folder) if s.run == run)


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
    facts = {"blocklora": json.dumps({"step": 120, "seconds": 30.0})}
    save_file({"x": np.zeros(1)}, results.checkpoint("safetensors"), facts)
    results.write(f"logs/fit/{CLIP}/dtd/block_lora/1shot-seeds1_2.log", "run: step 100")
    with hold(results.checkpoint("lock"), results.run().folder):
        status = results.of()
    assert status.state == "running"
    assert status.why.startswith("process ")
    assert status.why.endswith("; at step 120 of 500")
    assert (status.spent_seconds, status.left_seconds) == (30, 70)


def test_the_lock_of_a_dead_process_is_no_running_run(results):
    lock = results.checkpoint("lock")
    with hold(lock, results.run().folder):
        facts = json.loads(lock.read_text())
    process = subprocess.Popen(["true"])
    process.wait()
    lock.write_text(json.dumps(facts | {"pid": process.pid}))
    assert results.of().state == "missing"


def test_a_failed_run_tells_the_last_error_of_its_log(results):
    log = (
        "run: step 10/500 loss 3.1\nblocklora fit: error: run dtd/…/seed1: the loss of step 11 "
        "is nan\nthe job was removed\n"
    )
    results.write(f"logs/fit/{CLIP}/dtd/block_lora/4shot-seeds1.log", log)
    status = results.of(shots=4)
    assert status.state == "failed"
    assert status.why == ("fit: run dtd/…/seed1: the loss of step 11 is nan the job was removed")
    assert results.of(shots=4, seed=2).state == "missing"


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


def test_a_job_that_was_killed_leaves_a_log_without_a_message(results):
    results.write(f"logs/fit/{CLIP}/dtd/block_lora/1shot-seeds1_2.log", "step 10\n")
    assert results.of().state == "failed"
    assert "the job was killed" in results.of().why
    with hold(results.checkpoint("lock", seed=2), results.run(seed=2).folder):
        assert (results.of(seed=1).state, results.of(seed=2).state) == ("missing", "running")


def test_results_of_another_version_of_the_study_do_not_count(results, document, write, tmp_path):
    results.finish(100)
    document["methods"]["block_lora"]["alpha"] = 2
    changed = Results(write(), results.folder)
    assert changed.of().state == "missing"
    assert changed.of().why == "made by another version of the study or of the code"


@pytest.mark.parametrize("content", ['{"cost"', "[]", '{"cost": {}, "provenance": {}}'])
def test_a_damaged_record_does_not_count_and_is_named(results, content):
    results.finish(100)
    path = results.write(f"runs/{results.run().folder}/fit.json", content)
    assert results.of().state == "missing"
    assert str(path) in results.of().why


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
