"""A run's memory on a GPU stays within its plan, and is given back."""

import gc
import weakref

import pytest
import torch

from tests.gpu import setting as gpu
from tests.gpu.setting import WHOLE

pytestmark = pytest.mark.gpu

MIB, GIB = 2**20, 2**30
# An epoch of one whole batch and a smaller one.
IMAGES = 45
# What a card of 6 GB has left beside its context and the desktop.
SMALL_CARD = int(5.4 * GIB)


def need_free(size):
    """Skip a test on a card that has less than `size` bytes free."""
    if torch.cuda.mem_get_info()[0] < size:
        pytest.skip(f"less than {size / GIB:.1f} GiB of the GPU are free")


def memory_of_a_training(classes, precision):
    """Return planned, allocated, reserved and left bytes, and whether the engine is gone."""
    which = gpu.vit_b16(classes, precision)
    gc.disable()  # nothing may need it
    subject, _ = gpu.trained(which, count=4, images=IMAGES)
    torch.cuda.synchronize()
    allocated, needed = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
    there = weakref.ref(subject)
    del subject
    gone = there() is None
    torch.cuda.empty_cache()
    left = torch.cuda.memory_reserved()
    return gpu.planned_peak_bytes(which, WHOLE), allocated, needed, left, gone


@pytest.mark.parametrize(("classes", "precision"), [(1000, "fp16"), (397, "fp32"), (100, "fp16")])
def test_training_takes_what_was_planned_and_gives_it_back(classes, precision):
    """The last batch of an epoch is smaller, and is part of the plan."""
    need_free(8 * GIB)
    planned, allocated, needed, left, gone = gpu.alone(memory_of_a_training, classes, precision)
    assert allocated == pytest.approx(planned, rel=0.1)
    assert needed < planned / gpu.USABLE_SHARE
    assert gone, "the engine is part of a reference cycle"
    assert left < planned / 4


def test_free_memory_counts_what_the_allocator_keeps():
    need_free(2 * GIB)
    before = gpu.free_bytes(gpu.DEVICE)
    block = torch.empty(GIB, dtype=torch.uint8, device=gpu.DEVICE)
    assert gpu.free_bytes(gpu.DEVICE) < before - GIB + 256 * MIB
    del block
    assert gpu.free_bytes(gpu.DEVICE) > before - 256 * MIB


def two_runs(classes, precision, limit):
    """Train and test twice with `limit` bytes; return recordings and planned bytes of each run."""
    torch.cuda.set_per_process_memory_fraction(limit / torch.cuda.mem_get_info()[1])
    which = gpu.vit_b16(classes, precision)
    pixels = gpu.batch(which, 300)[0].numpy()
    attempts, results = [], []

    def attempt(chunks):
        attempts.append(chunks)
        subject, _ = gpu.trained(which, count=4, images=IMAGES, chunks=chunks)
        return subject.adapter, gpu.recordings(subject)

    for _ in range(2):
        (adapter, recordings), plan = gpu.train_within_memory(which, gpu.DEVICE, attempt)
        gpu.cosines(which, pixels, adapter)
        results.append((recordings, plan.peak_bytes))
    return results, len(attempts)


@pytest.mark.parametrize(("classes", "precision"), [(397, "fp32"), (1000, "fp32"), (1000, "fp16")])
def test_two_runs_in_one_process_fit_a_small_card(classes, precision):
    """The second finds as much memory as the first, and neither runs out of it."""
    need_free(SMALL_CARD)
    results, attempts = gpu.alone(two_runs, classes, precision, SMALL_CARD)
    (first, first_planned), (second, second_planned) = results
    assert attempts == 2
    assert first > 0
    assert second > 0
    assert first_planned <= gpu.USABLE_SHARE * SMALL_CARD
    assert second_planned == pytest.approx(first_planned, rel=0.25)
