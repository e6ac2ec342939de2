"""Runs that are interrupted, met by a second process, or left with a useless checkpoint."""

import json
import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from time import sleep

import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from blocklora.locks import read_holder
from tests.faults.pipeline import assert_equal_results, find, forget, remove_outputs

RUN = "mini-clip/own/block_lora/2shot/seed1"


def files_of(folder, suffix):
    return [p for p in (folder / "cache/unfinished").glob(f"*.{suffix}") if p.name[0] != "."]


@pytest.fixture
def stage(study, copied):
    """The fit of two seeds, not done yet."""
    stage = find(study, "fit", RUN)
    remove_outputs(copied, stage)
    forget(copied, "fits", "tests")
    return stage


def fit_until_checkpoint(runner, copied, stage, number):
    """Start to fit, send a signal as soon as a checkpoint is seen, and return the exit status."""
    while True:
        process = runner.start(copied, stage.arguments)
        while process.is_alive() and not files_of(copied, "safetensors"):
            sleep(0.001)
        if process.is_alive():
            os.kill(process.pid, number)
        process.join()
        if process.exitcode != 0:
            return process.exitcode
        # The machine was busy and the signal came too late.
        remove_outputs(copied, stage)
        forget(copied, "fits", "tests")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_saves_the_work_and_asks_to_be_started_again(
    runner, finished, copied, stage, number
):
    assert fit_until_checkpoint(runner, copied, stage, number) == 75
    assert f"error: run {RUN}: stopped by {number.name} after step" in runner.text()
    assert len(files_of(copied, "safetensors")) == 1
    assert files_of(copied, "lock") == []

    outcome = runner(copied, stage.arguments)
    assert outcome.status == 0
    assert f"run {RUN}: continued from step" in outcome.text
    assert_equal_results(copied, finished[0])


def test_a_killed_run_goes_on_from_its_checkpoint_under_the_lock_it_left(
    runner, finished, copied, stage
):
    assert fit_until_checkpoint(runner, copied, stage, signal.SIGKILL) == -9
    assert len(files_of(copied, "lock")) == 1
    outcome = runner(copied, stage.arguments)
    assert outcome.status == 0
    assert f"run {RUN}: took over from process" in outcome.text
    assert f"run {RUN}: continued from step" in outcome.text
    assert_equal_results(copied, finished[0])


def start_and_stop(runner, copied, stage):
    """Start to fit, stop the process as soon as it holds the lock of a run, and return it."""
    process = runner.start(copied, stage.arguments)
    # A lock that was just made does not name its holder yet.
    while not any(map(read_holder, files_of(copied, "lock"))):
        sleep(0.001)
    os.kill(process.pid, signal.SIGSTOP)
    return process


def test_a_second_process_waits_for_the_first_one_and_takes_what_it_made(
    runner, finished, copied, stage
):
    """The first one is stopped before its first step, so that the second one meets its lock."""
    first = start_and_stop(runner, copied, stage)
    (lock,) = files_of(copied, "lock")
    holder = read_holder(lock)
    alone = replace(stage, arguments=(*stage.arguments, "--seeds", holder.what[-1]))
    second = start_and_wait(runner, copied, alone)
    assert f"{holder.what}: waiting for process {first.pid} on" in runner.text()
    os.kill(first.pid, signal.SIGCONT)
    for process in (first, second):
        process.join()
        assert process.exitcode == 0
    assert_equal_results(copied, finished[0])


def start_and_wait(runner, copied, stage):
    """Start to fit, and return the process when it waits for another one."""
    process = runner.start(copied, stage.arguments)
    while "waiting for process" not in runner.text():
        assert process.is_alive()
        sleep(0.01)
    return process


def test_a_process_that_waits_can_be_stopped(runner, copied, stage):
    first = start_and_stop(runner, copied, stage)
    second = start_and_wait(runner, copied, stage)
    os.kill(second.pid, signal.SIGTERM)
    second.join(30)
    os.kill(first.pid, signal.SIGKILL)
    first.join()
    assert second.exitcode == 75
    assert re.search("run .*: stopped by SIGTERM before its first step", runner.text())


def test_a_process_that_waits_takes_over_from_one_that_dies(runner, finished, copied, stage):
    first = start_and_stop(runner, copied, stage)
    second = start_and_wait(runner, copied, stage)
    os.kill(first.pid, signal.SIGKILL)
    second.join()
    assert second.exitcode == 0
    assert f"took over from process {first.pid} on" in runner.text()
    assert_equal_results(copied, finished[0])


def test_deleted_files_come_back_from_the_cache_without_a_fit(runner, study, finished, copied):
    stage = find(study, "fit", RUN)
    before = {path: (copied / path).read_bytes() for path in stage.outputs}
    remove_outputs(copied, stage)
    outcome = runner(copied, stage.arguments)
    assert outcome.status == 0, outcome.text
    assert "fitted in" not in outcome.text
    assert {path: (copied / path).read_bytes() for path in stage.outputs} == before


def test_a_cache_that_cannot_be_written_keeps_nothing_from_being_finished(
    runner, finished, copied, stage
):
    (copied / "file").write_text("no folder can be in it")
    arguments = ["file/cache" if word == "cache" else word for word in stage.arguments]
    outcome = runner(copied, tuple(arguments))
    assert outcome.status == 0, outcome.text
    assert "nothing is kept there for other studies" in outcome.text
    assert_equal_results(copied, finished[0])


def change_checkpoint(path, **changes):
    with safe_open(path, framework="numpy") as file:
        facts = json.loads(file.metadata()["blocklora"])
    save_file(load_file(path), path, {"blocklora": json.dumps(facts | changes)})


def cut_short(path):
    path.write_bytes(path.read_bytes()[:-50])


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (cut_short, "not a readable checkpoint"),
        (lambda path: change_checkpoint(path, key="f" * 64), "another configuration of the"),
        (lambda path: change_checkpoint(path, format="blocklora-checkpoint-0"), "another version"),
    ],
)
def test_a_useless_checkpoint_is_refused_until_told_to_start_over(
    runner, finished, copied, stage, damage, reason
):
    fit_until_checkpoint(runner, copied, stage, signal.SIGKILL)
    (checkpoint,) = files_of(copied, "safetensors")
    damage(checkpoint)
    refused = runner(copied, stage.arguments)
    assert refused.status == 1
    assert str(checkpoint.relative_to(copied)) in refused.text
    assert reason in refused.text
    assert "pass --restart" in refused.text
    assert checkpoint.exists()

    outcome = runner(copied, (*stage.arguments, "--restart"))
    assert outcome.status == 0
    assert "continued from step" not in outcome.text
    assert_equal_results(copied, finished[0])


def test_copies_on_a_disk_of_the_machine_change_no_result(
    runner, finished, copied, stage, tmp_path
):
    environment = {"NODE_DISK": str(tmp_path / "disk")}
    outcome = runner(copied, (*stage.arguments, "--scratch", "$NODE_DISK"), environment=environment)
    assert outcome.status == 0, outcome.text
    assert len([path for path in (tmp_path / "disk").rglob("*") if path.is_file()]) == 4
    assert_equal_results(copied, finished[0])


@pytest.mark.faults
def test_a_process_killed_from_outside_ends_like_an_undisturbed_one(finished, copied, stage):
    """The same with a process that is started as users start it."""
    command = [Path(sys.executable).with_name("blocklora"), *stage.arguments]
    for _ in range(3):
        before = saved_at(copied)
        process = subprocess.Popen(command, cwd=copied, stderr=subprocess.DEVNULL)
        while process.poll() is None and saved_at(copied) == before:
            sleep(0.001)
        process.kill()
        process.wait()
    subprocess.run(command, cwd=copied, check=True)
    assert_equal_results(copied, finished[0])


def saved_at(folder):
    with suppress(FileNotFoundError):
        return [(p.name, p.stat().st_mtime_ns) for p in files_of(folder, "safetensors")]
    return []
