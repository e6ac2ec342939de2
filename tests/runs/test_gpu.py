import logging
import os
import subprocess
import sys
from time import monotonic

import pytest

from blocklora.runs import gpu as gpus
from blocklora.runs.gpu import claim_gpu, listed_gpus, resolve_device, shown_gpus

CLAIM = (
    "import os, sys, blocklora.runs.gpu as g; share = g.claim_gpu('cuda', int(sys.argv[1]))\n"
    "print(os.environ.get('CUDA_VISIBLE_DEVICES'), share, 'torch' in sys.modules, flush=True)\n"
    "sys.stdin.readline()"
)
TWO_CARDS = """\
GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-11)
GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-22)
"""
SLICES = """\
GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-11)
GPU 1: NVIDIA H100 80GB HBM3 (UUID: GPU-22)
  MIG 3g.40gb     Device  0: (UUID: MIG-aa)
  MIG 1g.10gb+me  Device  1: (UUID: MIG-bb)
GPU 2: NVIDIA H100 80GB HBM3 (UUID: GPU-33)
  MIG 7g.80gb     Device  0: (UUID: MIG-GPU-33/0/0)
"""


@pytest.fixture
def nvidia_smi(tmp_path, monkeypatch):
    """Return a function that makes nvidia-smi print a listing, after or before other commands."""
    program = tmp_path / "bin/nvidia-smi"
    program.parent.mkdir()
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    monkeypatch.setenv(gpus.VISIBLE, "")  # so that it is restored whatever is claimed
    monkeypatch.delenv(gpus.VISIBLE)

    def install(listing="", command=""):
        program.write_text(f"#!/bin/sh\ncat << END\n{listing}END\n{command}\n")
        program.chmod(0o755)

    return install


@pytest.fixture
def claim(tmp_path, monkeypatch, nvidia_smi):
    """Start processes that claim one of two GPUs and hold it until they are ended."""
    nvidia_smi(TWO_CARDS)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    processes = []

    def start(jobs=1):
        command = [sys.executable, "-c", CLAIM, str(jobs)]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        processes.append(process)
        name, share, torch = process.stdout.readline().split()
        assert torch == "False"
        process.share = int(share)
        return name, process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def test_each_job_sees_a_gpu_of_its_own(claim):
    assert [claim()[0], claim()[0]] == ["GPU-11", "GPU-22"]


def test_the_gpu_of_a_killed_job_is_free_again(claim):
    _, first = claim()
    assert claim()[0] == "GPU-22"
    first.kill()
    first.wait()
    assert claim()[0] == "GPU-11"


def test_more_jobs_than_gpus_share_them_evenly(claim):
    jobs = [claim(4) for _ in range(4)]
    assert [name for name, _ in jobs] == ["GPU-11", "GPU-22"] * 2
    assert [process.share for _, process in jobs] == [2] * 4


def test_a_single_gpu_shown_by_a_batch_system_is_left_alone(claim, monkeypatch):
    monkeypatch.setenv(gpus.VISIBLE, "3")
    assert [claim()[0], claim()[0]] == ["3", "3"]


def test_one_of_several_visible_gpus_is_taken(claim, monkeypatch):
    monkeypatch.setenv(gpus.VISIBLE, "2,5")
    assert [claim()[0], claim()[0]] == ["2", "5"]


def test_a_machine_without_gpus_is_left_as_it_is(claim, nvidia_smi):
    nvidia_smi(command="exit 9")
    assert claim()[0] == "None"


@pytest.fixture
def own_locks(tmp_path, monkeypatch):
    """A folder for the locks of this process, which are released in the end."""
    monkeypatch.setattr(gpus.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(gpus, "_held", [])


def test_slices_of_a_gpu_are_claimed_one_by_one(nvidia_smi, own_locks):
    nvidia_smi(SLICES)
    for name in ("GPU-11", "MIG-aa", "MIG-bb", "MIG-GPU-33/0/0", "GPU-11"):
        claim_gpu("cuda")
        assert os.environ.pop(gpus.VISIBLE) == name


@pytest.mark.parametrize(
    ("jobs", "listing", "shown", "share"),
    [
        (1, TWO_CARDS, None, 1),
        (2, TWO_CARDS, None, 1),
        (3, TWO_CARDS, None, 2),
        (4, TWO_CARDS, None, 2),
        (3, TWO_CARDS, "GPU-22", 3),
        (3, TWO_CARDS, "0,1,2", 1),
        (9, SLICES, None, 3),
        (3, "", None, 3),
    ],
)
def test_jobs_are_told_how_many_of_them_share_a_gpu(
    nvidia_smi, own_locks, monkeypatch, jobs, listing, shown, share
):
    nvidia_smi(listing)
    if shown is not None:
        monkeypatch.setenv(gpus.VISIBLE, shown)
    assert claim_gpu("cuda", jobs) == share
    assert claim_gpu("cpu", jobs) == 1


@pytest.mark.parametrize(
    ("listing", "names"),
    [
        ("", []),
        ("No devices found.\n", []),
        (TWO_CARDS, ["GPU-11", "GPU-22"]),
        (SLICES, ["GPU-11", "MIG-aa", "MIG-bb", "MIG-GPU-33/0/0"]),
    ],
)
def test_slices_are_listed_instead_of_the_gpu_that_is_split(nvidia_smi, caplog, listing, names):
    nvidia_smi(listing)
    assert listed_gpus() == names
    assert not caplog.messages


def test_a_driver_that_hangs_is_told_and_not_waited_for(nvidia_smi, monkeypatch, caplog):
    nvidia_smi(TWO_CARDS, "exec sleep 60")
    monkeypatch.setattr(gpus, "ANSWER_SECONDS", 0.1)
    begin = monotonic()
    with caplog.at_level(logging.WARNING):
        assert (listed_gpus(), claim_gpu("cuda", 3), resolve_device("auto")) == ([], 3, "cpu")
    assert monotonic() - begin < 5
    assert len(caplog.messages) == 3
    assert caplog.messages[0].startswith("nvidia-smi does not answer within 0.1 s. GPUs may be")


def test_what_a_failing_driver_says_is_told_in_one_line(nvidia_smi, caplog):
    nvidia_smi(TWO_CARDS, "echo 'Unable to determine the device handle\nfor gpu 2' >&2; exit 15")
    assert listed_gpus() == ["GPU-11", "GPU-22"]
    (said,) = caplog.messages
    assert said.startswith("nvidia-smi fails: GPU 0: NVIDIA")
    assert "device handle for gpu 2. GPUs may be missing; repair" in said


@pytest.mark.parametrize(
    ("value", "names"),
    [
        ("", []),
        ("-1", []),
        ("NoDevFiles", []),
        ("0", ["0"]),
        ("1, MIG-aa", ["1", "MIG-aa"]),
        ("2,-1,0", ["2"]),
    ],
)
def test_gpus_are_shown_up_to_the_first_name_that_hides(nvidia_smi, monkeypatch, value, names):
    nvidia_smi(TWO_CARDS)
    monkeypatch.setenv(gpus.VISIBLE, value)
    assert shown_gpus() == names
    assert resolve_device("auto") == ("cuda" if names else "cpu")


@pytest.mark.parametrize(
    ("listing", "command", "device"),
    [
        ("GPU 0: some card (UUID: GPU-11)\n", "", "cuda"),
        ("GPU 1: the only one left (UUID: GPU-11)\n", "", "cuda"),
        ("No devices found.\n", "", "cpu"),
        ("NVIDIA-SMI has failed\n", "exit 9", "cpu"),
    ],
)
def test_auto_is_cuda_where_the_driver_lists_a_gpu(nvidia_smi, listing, command, device):
    nvidia_smi(listing, command)
    assert resolve_device("auto") == device


@pytest.mark.parametrize("shown", [None, "0"])
def test_auto_is_the_cpu_without_a_driver(monkeypatch, tmp_path, shown):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv(gpus.VISIBLE, raising=False)
    if shown is not None:
        monkeypatch.setenv(gpus.VISIBLE, shown)
    assert resolve_device("auto") == "cpu"
    assert resolve_device("cuda") == "cuda"
