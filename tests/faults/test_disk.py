"""A file system that is full or read-only: a message that names the file, and a way on."""

import os
import re
import shutil
import subprocess

import pytest

from tests.faults.pipeline import CACHE, RESULTS, assert_equal_results, remove_outputs, stages, undo


@pytest.fixture
def disk(finished, tmp_path):
    """A copy of the finished study on a small file system of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", folder], capture_output=True, text=True
    )
    if mounted.returncode != 0:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    yield shutil.copytree(finished[0], folder / "study", symlinks=True)
    subprocess.run(["umount", "--lazy", folder], check=True)


def fill(disk):
    """Leave no room for another byte and return what takes it."""
    filler = disk.parent / "filler"
    descriptor = os.open(filler, os.O_CREAT | os.O_WRONLY)
    for size in (2**16, 1):
        try:
            while True:
                os.write(descriptor, bytes(size))
        except OSError:
            continue
    os.close(descriptor)
    return filler


def remount(disk, mode):
    subprocess.run(["mount", "-o", f"remount,{mode}", disk.parent], check=True)


def assert_said(outcome, stage, reason):
    assert outcome.status == 1, f"{stage.name}: {outcome.text}"
    assert re.search(f"blocklora {stage.name}: error: (results|cache)/", outcome.text)
    assert re.search(reason, outcome.text), outcome.text
    assert "Traceback" not in outcome.text, outcome.text


def test_a_full_or_read_only_disk_is_said_by_every_stage_and_forgotten_when_it_is_not(
    runner, study, finished, disk
):
    for stage in stages(study):
        undo(disk, stage)
        filler = fill(disk)
        full = runner(disk, stage.arguments)
        assert_said(full, stage, "No space left on device|GB are free; make room")
        assert not [output for output in stage.outputs if (disk / output).exists()]
        filler.unlink()
        remount(disk, "ro")
        read_only = runner(disk, stage.arguments)
        remount(disk, "rw")
        assert_said(read_only, stage, "Read-only file system")
        assert runner(disk, stage.arguments).status == 0, stage.name
    assert_equal_results(disk, finished[0])
    assert list(disk.rglob(".*")) == []


@pytest.fixture(params=["filled", "empty"])
def read_only_cache(request, copied):
    """The cache of a finished study or an empty one, to which nobody can write."""
    cache = copied / CACHE
    if request.param == "empty":
        shutil.rmtree(cache)
        cache.mkdir()
    mounted = subprocess.run(["mount", "--bind", cache, cache], capture_output=True, text=True)
    if mounted.returncode != 0:
        pytest.skip(f"no folder can be mounted here: {mounted.stderr.strip()}")
    subprocess.run(["mount", "-o", "remount,bind,ro", cache], check=True)
    yield request.param
    subprocess.run(["umount", "--lazy", cache], check=True)


def test_a_read_only_cache_is_used_and_keeps_nothing_from_being_finished(
    runner, study, finished, copied, read_only_cache
):
    made, cached = [], [stage for stage in stages(study) if "--cache" in stage.arguments]
    for stage in cached:
        remove_outputs(copied, stage)
    for stage in cached:
        outcome = runner(copied, stage.arguments)
        assert outcome.status == 0, f"{stage.name}: {outcome.text}"
        made += re.findall("fitted in", outcome.text)
    assert_equal_results(copied, finished[0])
    links = [path for path in (copied / RESULTS).rglob("*") if path.is_symlink()]
    assert (len(links), len(made)) == {"filled": (4, 0), "empty": (0, 4)}[read_only_cache]
