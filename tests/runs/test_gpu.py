import subprocess
import sys

import pytest

from blocklora.runs import gpu as gpus

CLAIM = (
    "import os, sys, blocklora.runs.gpu as g; g.claim_gpu('cuda')\n"
    "print(os.environ.get('CUDA_VISIBLE_DEVICES'), 'torch' in sys.modules, flush=True)\n"
    "sys.stdin.readline()"
)
LISTING = """\
#!/bin/sh
echo 'GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-11)'
echo 'GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-22)'
"""


@pytest.fixture
def claim(tmp_path, monkeypatch):
    """Start processes that claim a GPU and hold it until they are ended."""
    program = tmp_path / "bin/nvidia-smi"
    program.parent.mkdir()
    program.write_text(LISTING)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.delenv(gpus.VISIBLE, raising=False)
    processes = []

    def start():
        process = subprocess.Popen(
            [sys.executable, "-c", CLAIM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        processes.append(process)
        name, torch = process.stdout.readline().split()
        assert torch == "False"
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
    assert [claim()[0] for _ in range(4)] == ["GPU-11", "GPU-22"] * 2


def test_a_single_gpu_shown_by_a_batch_system_is_left_alone(claim, monkeypatch):
    monkeypatch.setenv(gpus.VISIBLE, "3")
    assert [claim()[0], claim()[0]] == ["3", "3"]


def test_one_of_several_visible_gpus_is_taken(claim, monkeypatch):
    monkeypatch.setenv(gpus.VISIBLE, "2,5")
    assert [claim()[0], claim()[0]] == ["2", "5"]


def test_a_machine_without_gpus_is_left_as_it_is(claim, tmp_path):
    (tmp_path / "bin/nvidia-smi").write_text("#!/bin/sh\nexit 9\n")
    assert claim()[0] == "None"
