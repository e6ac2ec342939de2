"""Tests of runs on a GPU: right for all stores of pixels, without waiting, in little memory."""

from collections import deque
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from tests.gpu import setting as gpu

pytestmark = pytest.mark.gpu

GIB = 2**30
# Three batches and a smaller one.
IMAGES = 3 * 256 + 7
# Of cosines from those that the CPU computes in fp32; a run in bf16 is tested in fp16.
TOLERANCE = {"fp32": 1e-4, "bf16": 3e-3, "fp16": 3e-3}
# Clock cycles for which the GPU is kept busy before every batch, about a tenth of a second.
BUSY = 150_000_000


def pixels_of(setting, count=IMAGES):
    return gpu.batch(setting, count)[0].numpy()


@pytest.mark.parametrize("kind", ["mapped", "reversed", "lazy"])
def test_predictions_equal_those_of_the_cpu(tmp_path, precision, kind):
    which, exact = gpu.small(precision), gpu.small()
    pixels, adapter = pixels_of(which), gpu.engine(exact, device="cpu").adapter
    wanted = gpu.cosines(exact, pixels, adapter, "cpu")
    subject = gpu.classifier(which, adapter)
    classes, probabilities = subject.predict(gpu.stored(pixels, tmp_path, kind))
    # Two classes may be almost equally likely.
    chosen = wanted.gather(1, torch.from_numpy(classes)[:, None])[:, 0]
    assert (wanted.max(1).values - chosen).max() < 2 * TOLERANCE[precision]
    expected = (subject.logit_scale * wanted).softmax(1).max(1).values
    difference = (torch.from_numpy(probabilities) - expected).abs().max()
    assert difference < subject.logit_scale * TOLERANCE[precision] / 2


@contextmanager
def waiting_is_an_error():
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("kind", ["mapped", "lazy"])
def test_a_test_waits_for_the_gpu_only_at_its_end(tmp_path, precision, kind):
    which = gpu.small(precision)
    pixels = gpu.stored(pixels_of(which), tmp_path, kind)
    subject = gpu.classifier(which)
    wanted = subject.predict(pixels)  # libraries set themselves up in their first calls
    features, batches = subject.features, []

    def strict(given):
        with waiting_is_an_error():
            for some in features(given):
                batches.append(len(some))
                yield some

    subject.features = strict
    found = subject.predict(pixels)
    assert batches == [256, 256, 256, 7]
    np.testing.assert_allclose(found[1], wanted[1], atol=1e-3)


def test_batches_that_wait_for_a_busy_gpu_are_few_and_not_overwritten():
    """Reading is far ahead of copying here, as for a large model on a slow card."""
    which = gpu.small()
    pixels = pixels_of(which, 10 * 256)
    wanted = gpu.cosines(which, pixels, device="cpu")
    subject = gpu.classifier(which)
    encode, launched, ahead, found = subject._encode, deque(), [], []

    def busy(images):
        torch.cuda._sleep(BUSY)
        return encode(images)

    subject._encode = busy
    for features in subject.features(pixels):
        launched.append(torch.cuda.Event())
        launched[-1].record()
        found.append(features @ subject.class_features.T)
        while launched and launched[0].query():
            launched.popleft()
        ahead.append(len(launched))
    assert (torch.cat(found).cpu() - wanted).abs().max() < TOLERANCE["fp32"]
    assert 2 <= max(ahead) <= 3


def evaluations_in_little_memory(limit):
    """Test twice with less memory than a batch needs, and then with all there is.

    Return the sizes of the batches, whether memory was reclaimed, and how far the cosines are from
    the last ones.
    """
    which = gpu.vit_b16(100, "fp16")
    pixels, kept = pixels_of(which, 256 + 44), {}
    sizes, found = [], []

    def note(subject):
        features = torch.cat([*subject.features(pixels)])
        found.append((features @ subject.class_features.T).cpu())
        sizes.append(subject._batch_size)

    torch.cuda.set_per_process_memory_fraction(limit / torch.cuda.mem_get_info()[1])
    kept["engine"] = torch.empty(limit // 2, dtype=torch.uint8, device=gpu.DEVICE)
    note(gpu.classifier(which, reclaim=kept.clear))
    reclaimed = not kept
    note(gpu.classifier(which))
    torch.cuda.set_per_process_memory_fraction(1.0)
    note(gpu.classifier(which))
    return sizes, reclaimed, [(some - found[-1]).abs().max().item() for some in found[:-1]]


def test_tests_fit_a_card_that_is_too_small_for_their_batches():
    if torch.cuda.mem_get_info()[0] < 4 * GIB:
        pytest.skip("less than 4 GiB of the GPU are free")
    sizes, reclaimed, apart = gpu.alone(evaluations_in_little_memory, GIB)
    assert reclaimed
    assert max(sizes[:2]) < sizes[2] == 256
    assert max(apart) < 3e-3


def test_a_test_takes_the_time_until_the_gpu_has_finished():
    """Its seconds are taken after `predict`, which must not return what is still being computed."""
    which = gpu.small()
    subject, pixels = gpu.classifier(which), pixels_of(which, 8)
    subject.predict(pixels)
    choose = subject._choose

    def busy(features):
        found = choose(features)
        torch.cuda._sleep(BUSY)
        subject.done = torch.cuda.Event()
        subject.done.record()
        return found

    subject._choose = busy
    subject.predict(pixels)
    assert subject.done.query()


def test_memory_of_recorded_steps_is_reported_for_every_fit_that_replays_them():
    (first, cost), (second, _) = gpu.fits(gpu.small("fp16"), seeds=(1, 2))
    assert first["recorded_steps"]
    assert first["peak_memory_bytes"] == cost["peak_memory_bytes"] > 0
    assert second["peak_memory_bytes"] == pytest.approx(first["peak_memory_bytes"], rel=0.1)
