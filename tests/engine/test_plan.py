import gc
import logging
import weakref
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from blocklora.engine import needs
from blocklora.engine import plan as planning
from blocklora.engine.fast import Chunks
from blocklora.engine.needs import Setting, planned_peak_bytes
from blocklora.engine.plan import Plan, candidates, next_smaller, plan, train_within_memory
from blocklora.errors import UserError
from tests.tiny import LORA, SHAPE

ADAPTER = replace(LORA, blocks=2, dropout=0.25)
PROMPTS = tuple((1, *[2 + i] * (1 + i % 4), 3) for i in range(12))
SETTING = Setting(SHAPE, ADAPTER, PROMPTS, batch_size=4, precision="fp32")


@pytest.fixture(scope="module", autouse=True)
def tensors_alone():
    """Leave out the workspaces of products, which are larger than everything else here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(needs, "PRODUCT_WORKSPACE", 0)
        yield


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


@pytest.mark.parametrize("towers", [("vision", "text"), ("vision",), ("text",)])
def test_candidates_get_smaller(towers):
    setting = replace(SETTING, adapter=replace(ADAPTER, towers=towers))
    peaks = [planned_peak_bytes(setting, chunks) for chunks in candidates(setting)]
    assert peaks == sorted(peaks, reverse=True)
    assert peaks[-1] < 0.8 * peaks[0]


def test_the_smallest_chunks_are_single_images_and_few_prompts():
    prompts = tuple((1, 2, 3, 4 + i) for i in range(200))
    assert [*candidates(replace(SETTING, prompts=prompts))][-1] == Chunks(tokens=25, images=1)


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


def test_memory_is_measured_after_the_second_attempt_is_gone(roomy, monkeypatch):
    """Its error keeps its tensors alive until it is left behind."""
    knots = []

    def attempt(chunks):
        knot = Knot()
        knots.append(weakref.ref(knot))
        raise torch.OutOfMemoryError("CUDA out of memory")

    def free(device):
        gc.collect()
        gone.append([knot() is None for knot in knots])
        return 2**24

    gone = []
    monkeypatch.setattr(planning, "free_bytes", free)
    with pytest.raises(UserError, match="even in small chunks"):
        train_within_memory(SETTING, "cuda", attempt)
    assert gone == [[], [True, True]]


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
