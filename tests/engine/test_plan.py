import logging
import weakref
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from blocklora.adapters.adapter import Adapter
from blocklora.engine import plan as planning
from blocklora.engine.fast import Chunks, FastEngine
from blocklora.engine.memory import TensorMemory
from blocklora.engine.plan import (
    Plan,
    Setting,
    candidates,
    next_smaller,
    plan,
    planned_peak_bytes,
    train_within_memory,
)
from blocklora.errors import UserError
from tests.tiny import LORA, SHAPE, tiny_backbone

ADAPTER = replace(LORA, blocks=2, dropout=0.25)
PROMPTS = tuple((1, *[2 + i] * (1 + i % 4), 3) for i in range(12))
SHALLOW = replace(SHAPE, vision=replace(SHAPE.vision, layers=1), text=replace(SHAPE.text, layers=1))
SETTING = Setting(SHALLOW, ADAPTER, PROMPTS, batch_size=4, precision="fp32")


@pytest.fixture(scope="module")
def backbone():
    return tiny_backbone()


def counted_peak(backbone, setting, chunks):
    """Run a step and count; as in training, the optimizer has two moments of every parameter."""
    with TensorMemory() as memory:
        copied = {name: weight.clone() for name, weight in backbone.weights.items()}
        adapter = Adapter.initialise(
            setting.adapter, backbone.config.tower_shapes, torch.Generator().manual_seed(0)
        )
        engine = FastEngine(
            replace(backbone, weights=copied),
            adapter,
            setting.prompts,
            logit_scale=100.0,
            seed=0,
            precision=setting.precision,
            chunks=chunks,
        )
        optimizer = torch.optim.AdamW(adapter.parameters())
        for parameter in adapter.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        for state in optimizer.state.values():
            del state["step"]
        images = torch.zeros(setting.batch_size, 32, 32, 3, dtype=torch.uint8)
        labels = torch.zeros(setting.batch_size, dtype=torch.long)
        del copied, parameter, state
        memory.peak_bytes = memory.live_bytes
        engine.step(images, labels, 0, torch.amp.GradScaler(enabled=False))
    return memory.peak_bytes


@pytest.mark.parametrize("chunks", [Chunks(), Chunks(tokens=25), Chunks(tokens=10, images=2)])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"dropout": 0.0},
        {"towers": ("vision",), "matrices": ("q", "k", "v", "o")},
        {"towers": ("text",), "blocks": 1},
    ],
)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_planned_peak_is_what_a_step_allocates(backbone, precision, changes, chunks):
    adapter = replace(ADAPTER, **changes)
    setting = replace(SETTING, clip=SHAPE, adapter=adapter, precision=precision)
    assert planned_peak_bytes(setting, chunks) == counted_peak(backbone, setting, chunks)


@given(st.fractions(0.3, 1.1), st.sampled_from([("vision",), ("text",)]))
def test_plan_fits_the_budget_and_takes_the_first_that_does(share, towers):
    setting = replace(SETTING, adapter=replace(ADAPTER, towers=towers))
    peaks = {chunks: planned_peak_bytes(setting, chunks) for chunks in candidates(setting)}
    budget = int(share * peaks[Chunks()])
    fitting = [chunks for chunks, peak in peaks.items() if peak <= budget]
    if not fitting:
        with pytest.raises(UserError, match="12 classes and batches of 4 images in fp32 needs"):
            plan(setting, budget)
        return
    chosen = plan(setting, budget)
    assert chosen.peak_bytes == peaks[chosen.chunks] <= budget
    assert peaks[fitting[0]] == chosen.peak_bytes


def test_candidates_get_smaller():
    peaks = [planned_peak_bytes(SETTING, chunks) for chunks in candidates(SETTING)]
    assert peaks == sorted(peaks, reverse=True)
    assert peaks[-1] < 0.7 * peaks[0]


@pytest.fixture
def roomy(monkeypatch):
    """Pretend that a GPU has 16 MiB free."""
    monkeypatch.setattr(planning, "free_bytes", lambda device: 2**24)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_memory_running_out_leads_to_one_more_attempt_with_smaller_chunks(roomy, device, caplog):
    attempts = []

    def attempt(chunks):
        attempts.append(chunks)
        if len(attempts) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")
        return "history"

    with caplog.at_level(logging.WARNING):
        result, chosen = train_within_memory(SETTING, device, attempt)
    assert result == "history"
    assert attempts == [Chunks(), chosen.chunks]
    assert chosen.peak_bytes < planned_peak_bytes(SETTING, Chunks())
    (record,) = caplog.records
    assert "Tried to allocate 2.00 GiB.; trying again with Chunks(tokens=" in record.getMessage()


class Knot:
    """Refers to itself, so that counting references does not free it."""

    def __init__(self):
        self.itself = self


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_tensors_of_the_first_attempt_are_released_before_the_second(roomy, device, monkeypatch):
    first, released = [], []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: released.append(first[0]() is None))

    def attempt(chunks):
        if first:
            return first[0]() is None
        knot = Knot()
        first.append(weakref.ref(knot))
        raise torch.OutOfMemoryError("CUDA out of memory")

    gone, _ = train_within_memory(SETTING, device, attempt)
    assert gone
    assert released == ([True] if device == "cuda" else [])


def test_chunks_on_a_gpu_follow_from_the_free_memory(monkeypatch):
    whole = planned_peak_bytes(SETTING, Chunks())
    for free in (2**30, 0.9 * whole / planning.USABLE_SHARE):
        monkeypatch.setattr(planning, "free_bytes", lambda device, free=free: free)
        used, chosen = train_within_memory(SETTING, "cuda", lambda chunks: chunks)
        assert used == chosen.chunks
        assert chosen == plan(SETTING, int(planning.USABLE_SHARE * free))
    assert chosen.peak_bytes < whole


def test_a_cpu_needs_no_plan():
    assert train_within_memory(SETTING, "cpu", lambda chunks: chunks) == (Chunks(), None)


def test_memory_running_out_twice_is_an_error_with_advice():
    def attempt(chunks):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9")

    with pytest.raises(UserError, match=r"needs .* MiB even in small chunks.*smaller batch_size"):
        train_within_memory(SETTING, "cpu", attempt)


def test_other_errors_pass_through():
    def attempt(chunks):
        raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        train_within_memory(SETTING, "cpu", attempt)


def test_a_budget_too_small_stops_before_training(monkeypatch):
    monkeypatch.setattr(planning, "free_bytes", lambda device: 2**17)
    with pytest.raises(
        UserError, match=r"needs 0\.\d MiB even in small chunks, but only 0\.1 MiB are usable"
    ):
        train_within_memory(SETTING, "cuda", lambda chunks: pytest.fail("was called"))


def test_next_smaller_plan_goes_down_to_the_smallest():
    options = list(candidates(SETTING))
    smallest = Plan(options[-1], planned_peak_bytes(SETTING, options[-1]))
    assert next_smaller(SETTING, smallest).peak_bytes == smallest.peak_bytes
