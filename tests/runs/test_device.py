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
    monkeypatch.setattr(torch.cuda, "get_arch_list", list)


def test_bf16_on_a_gpu_without_it_is_refused(card):
    with pytest.raises(
        UserError, match="Tesla T4 does not compute in bf16; choose the precision fp16"
    ):
        require_device("cuda", "bf16")


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_an_old_gpu_computes_in_the_other_precisions(card, precision):
    require_device("cuda", precision)


def test_fp16_needs_a_gpu():
    with pytest.raises(UserError, match="precision fp16 needs a GPU; use fp32 on the CPU"):
        require_device("cpu", "fp16")


@pytest.fixture
def driver(monkeypatch):
    """Return a function that lets PyTorch see no GPU, for a reason."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def install(error):
        def init():
            raise error

        monkeypatch.setattr(torch.cuda, "init", init)

    return install


OLD_DRIVER = "The NVIDIA driver on your system is too old (found version 11040)."


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("No CUDA GPUs are available"), "here: No CUDA GPUs are available. PyTorch"),
        (RuntimeError(f"{OLD_DRIVER}\n Please update"), f"here: {OLD_DRIVER} Please update. PyT"),
        (AssertionError("Torch not compiled with CUDA enabled"), "here: Torch not compiled with"),
    ],
)
def test_a_gpu_that_pytorch_cannot_use_is_never_replaced(driver, monkeypatch, error, reason):
    driver(error)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    with pytest.raises(UserError, match="PyTorch sees no CUDA GPU here") as caught:
        require_device("cuda", "fp32")
    assert reason in str(caught.value)
    assert f"PyTorch {torch.__version__} is built for CUDA 13.0; update" in str(caught.value)


def test_gpus_hidden_by_the_environment_are_told(driver, monkeypatch):
    driver(RuntimeError("No CUDA GPUs are available"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    with pytest.raises(UserError, match=r"no CUDA GPU here \(CUDA_VISIBLE_DEVICES=-1\): No CUDA"):
        require_device("cuda", "fp32")


def test_the_reason_of_pytorch_itself_is_told(monkeypatch):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(UserError, match=r"NVIDIA driver|CUDA GPUs|compiled with CUDA"):
        require_device("cuda", "fp32")


def test_a_gpu_too_old_for_this_pytorch_is_refused(card, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_100", "compute_120"])
    require_device("cuda", "fp32")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla V100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 0))
    with pytest.raises(UserError, match=r"V100 has compute capability 7\.0, .* 7\.5 or newer"):
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


def test_unused_memory_of_this_process_counts_as_free(monkeypatch):
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
