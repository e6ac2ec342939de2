import os
import weakref

import pytest
import torch

from blocklora.errors import UserError
from blocklora.training.device import (
    free_bytes,
    is_out_of_memory,
    peak_memory_bytes,
    require_device,
)


@pytest.fixture
def card(monkeypatch):
    """Pretend that there is a GPU, too old for bf16."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")


def test_bf16_on_a_gpu_without_it_is_refused(card):
    with pytest.raises(UserError, match="Tesla T4 does not compute in bf16; set precision: fp16"):
        require_device("cuda", "bf16")


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_an_old_gpu_computes_in_the_other_precisions(card, precision):
    require_device("cuda", precision)


def test_fp16_needs_a_gpu():
    with pytest.raises(UserError, match="precision fp16 needs a GPU; use fp32 on the CPU"):
        require_device("cpu", "fp16")


def test_a_gpu_that_is_not_there_is_never_replaced(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="PyTorch sees no CUDA GPU here"):
        require_device("cuda", "fp32")


def test_peak_memory_sees_what_was_freed():
    before = peak_memory_bytes("cpu")
    torch.ones(before // 4)  # so many bytes, and something is resident beside them
    assert before < peak_memory_bytes("cpu") < 3 * before


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
