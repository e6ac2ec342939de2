import os

import pytest
import torch

from blocklora.engine.memory import free_bytes
from blocklora.errors import UserError
from blocklora.runs.device import peak_memory_bytes, require_device


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
