import os
import weakref

import pytest
import torch

from blocklora.engine.memory import free_bytes, is_out_of_memory
from blocklora.errors import UserError
from blocklora.runs.device import peak_memory, require_device, reset_peak_memory


@pytest.fixture
def card(monkeypatch):
    """Pretend that there is a GPU, too old for bf16."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))


def test_bf16_on_a_gpu_without_it_is_refused(card):
    with pytest.raises(UserError, match="Tesla T4 does not compute in bf16; set precision: fp16"):
        require_device("cuda", "bf16")


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_an_old_gpu_computes_in_the_other_precisions(card, precision):
    require_device("cuda", precision)


def test_fp16_needs_a_gpu():
    with pytest.raises(UserError, match="precision fp16 needs a GPU; use fp32 on the CPU"):
        require_device("cpu", "fp16")


@pytest.fixture
def driver(monkeypatch, tmp_path):
    """Return a function that lets nvidia-smi be a shell script; PyTorch sees no GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def install(script):
        path = tmp_path / "nvidia-smi"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    return install


NO_DEVICES = "echo No devices were found; exit 6"
OLD_DRIVER = """case $1 in
*compute_cap*) echo 'Field "compute_cap" is not a valid field to query.'; exit 2;;
*) echo 'Tesla K80, 470.82.01';;
esac"""


@pytest.mark.parametrize("script", [None, NO_DEVICES])
def test_a_gpu_that_is_not_there_is_never_replaced(driver, script):
    if script:
        driver(script)
    with pytest.raises(UserError, match="PyTorch sees no CUDA GPU here"):
        require_device("cuda", "fp32")


@pytest.mark.parametrize(
    ("script", "found"),
    [
        (
            "echo 'NVIDIA A100-SXM4-80GB, 535.104.05, 8.0'",
            "found NVIDIA A100-SXM4-80GB, driver 535.104.05, compute capability 8.0;",
        ),
        (OLD_DRIVER, "found Tesla K80, driver 470.82.01;"),
        (
            "echo 'NVIDIA-SMI has failed because it could not reach the driver.' >&2; exit 9",
            "found NVIDIA-SMI has failed because it could not reach the driver.;",
        ),
    ],
)
def test_a_driver_that_cannot_be_used_is_named_with_what_is_needed(driver, script, found):
    driver(script)
    with pytest.raises(UserError) as error:
        require_device("cuda", "fp32")
    assert found in str(error.value)
    assert "no CUDA GPU" not in str(error.value)
    assert "needs driver 580 and compute capability 7.5 or newer" in str(error.value)


def test_gpus_hidden_by_the_environment_are_told(driver, monkeypatch):
    driver("echo 'NVIDIA H100, 580.65.06, 9.0'")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    with pytest.raises(UserError, match=r"NVIDIA H100, .* and CUDA_VISIBLE_DEVICES=-1;"):
        require_device("cuda", "fp32")


def test_a_pytorch_without_cuda_is_told_from_a_machine_without_gpu(driver, monkeypatch):
    driver("echo 'NVIDIA H100, 580.65.06, 9.0'")
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(UserError, match=r"found NVIDIA H100.*is built without CUDA"):
        require_device("cuda", "fp32")


def test_a_gpu_too_old_for_cuda_is_refused(card, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla V100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 0))
    with pytest.raises(UserError, match=r"found Tesla V100, compute capability 7\.0; .* 7\.5 or"):
        require_device("cuda", "fp32")


def test_sums_of_products_stay_in_fp32_on_a_gpu(card, monkeypatch):
    matmul = torch.backends.cuda.matmul
    settings = (
        "allow_bf16_reduced_precision_reduction",
        "allow_fp16_reduced_precision_reduction",
    )
    before = [getattr(matmul, setting) for setting in settings]
    try:
        for setting in settings:
            setattr(matmul, setting, True)
        require_device("cuda", "fp16")
        assert not any(getattr(matmul, setting) for setting in settings)
    finally:
        for setting, value in zip(settings, before, strict=True):
            setattr(matmul, setting, value)


def test_peak_memory_sees_what_was_freed_until_it_is_reset():
    reset_peak_memory("cpu")
    before = peak_memory("cpu")["peak_memory_bytes"]
    torch.ones(before // 4)  # so many bytes, and something is resident beside them
    peak = peak_memory("cpu")["peak_memory_bytes"]
    assert before < peak < 3 * before
    reset_peak_memory("cpu")
    assert peak_memory("cpu")["peak_memory_bytes"] < (before + peak) / 2


def test_free_memory_is_a_part_of_what_there_is():
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < free_bytes("cpu") < total


def test_what_this_process_keeps_on_a_gpu_without_need_counts_as_free(monkeypatch):
    """Of 100 bytes, 30 are used and 20 kept beside them; 40 more are kept for garbage."""
    kept, knot = {"bytes": 60}, []
    knot.append(knot)  # refers to itself, so that only a collection frees it
    garbage = weakref.ref(token := torch.ones(1), lambda _: None)
    knot.append(token)
    del knot, token

    def empty_cache():
        if garbage() is None:
            kept["bytes"] = 20

    monkeypatch.setattr(torch.cuda, "empty_cache", empty_cache)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 30)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 30 + kept["bytes"])
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (70 - kept["bytes"], 100))
    assert free_bytes("cuda") == 70
    assert kept["bytes"] == 20


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported later"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to"),
    ],
)
def test_every_way_of_running_out_of_memory_is_recognised(error):
    assert is_out_of_memory(error)
    later = RuntimeError("the recording could not be ended")
    later.__context__ = error
    assert is_out_of_memory(later)


def test_other_errors_are_not_taken_for_missing_memory():
    assert not is_out_of_memory(RuntimeError("CUDA error: an illegal memory access"))
