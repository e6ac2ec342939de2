"""Errors of PyTorch that are no fault of the code are told in one line."""

import pytest
import torch

from blocklora import cli
from blocklora.errors import UserError
from blocklora.runs.failures import GpuFailedError, failures_explained

ADVICE = "CUDA kernel errors might be asynchronously reported at some other API call"


@pytest.fixture(autouse=True)
def card(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100")


def explanation(error):
    with pytest.raises(UserError) as caught, failures_explained("run a/b: "):
        raise error
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize(
    "error",
    [
        torch.AcceleratorError(f"CUDA error: an illegal memory access was encountered\n{ADVICE}"),
        torch.AcceleratorError(f"CUDA error: unspecified launch failure\n{ADVICE}"),
        torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered"),
        torch.AcceleratorError("CUDA error: CUDA-capable device(s) is/are busy or unavailable"),
        RuntimeError("CUDA driver error: device is lost"),
        RuntimeError("no CUDA-capable device is detected"),
        RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
        RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx(`"),
        RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(`"),
    ],
)
def test_every_way_of_losing_a_gpu_is_recognised(error):
    said = explanation(error)
    assert isinstance(said, GpuFailedError)
    first = str(error).splitlines()[0]
    assert str(said).startswith(f"run a/b: NVIDIA H100 failed ({first}); finished runs are kept; ")


def test_a_gpu_that_is_gone_has_no_name(monkeypatch):
    def gone():
        raise RuntimeError("No CUDA GPUs are available")

    monkeypatch.setattr(torch.cuda, "get_device_name", gone)
    said = explanation(torch.AcceleratorError("CUDA error: device is lost"))
    assert str(said).startswith("run a/b: the GPU failed (CUDA error: device is lost); finished")


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate 2.00 GiB. {'More. ' * 99}"),
        torch.AcceleratorError(f"CUDA error: out of memory\n{ADVICE}"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to"),
    ],
)
def test_a_lack_of_memory_is_no_failure_of_the_gpu(error):
    said = explanation(error)
    assert not isinstance(said, GpuFailedError)
    assert str(said).startswith(f"run a/b: memory ran out ({str(error).splitlines()[0][:30]}")
    assert len(str(said)) < 400


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), ValueError("CUDA error")])
def test_other_errors_pass_unchanged(error):
    with pytest.raises(type(error)) as caught, failures_explained("run a/b: "):
        raise error
    assert caught.value is error


@pytest.mark.parametrize("name", ["measure", "predict", "bench"])
def test_no_command_ends_in_a_traceback_if_its_gpu_fails(monkeypatch, capsys, name):
    def fail(context):
        raise torch.AcceleratorError(f"CUDA error: unspecified launch failure\n{ADVICE}")

    monkeypatch.setattr(cli.commands, "invoke", fail)
    assert cli.main([name]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"blocklora {name}: error: NVIDIA H100 failed (CUDA error: un")
