"""The classifier reads ahead, survives a lack of memory, and computes in each precision."""

import gc
import threading
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from blocklora.adapters.merge import merge
from blocklora.backbones.shape import TowerConfig
from blocklora.data.pixels import LazyPixels
from blocklora.engine import classifier as module
from blocklora.engine.classifier import Classifier
from blocklora.engine.reading import AHEAD, read_ahead
from blocklora.engine.towers import VisionTower
from blocklora.errors import UserError
from tests.tiny import LORA, SHAPE, tiny_backbone, trained_adapter

SIZE, SCALE = SHAPE.image_size, 30.0
# More classes than a vector register has lanes, and some of them twice.
PROMPTS = [(1, *[2 + i % 90] * (1 + i % 4), SHAPE.vocab_size - 1) for i in range(99)]


@pytest.fixture(scope="module")
def backbone():
    return tiny_backbone()


def pictures(count, seed=0):
    shape = (count, SIZE, SIZE, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def of_batches_in_turn(backbone, pixels):
    """Return what is predicted if each batch is read, encoded and compared on its own."""
    classifier, tower = Classifier(backbone, PROMPTS, SCALE), VisionTower(backbone)
    batches = (torch.from_numpy(pixels[at : at + 64].copy()) for at in range(0, len(pixels), 64))
    with torch.inference_mode():
        features = [F.normalize(tower(batch), dim=-1) for batch in batches]
        cosines = torch.cat([some @ classifier.class_features.T for some in features])
    classes = cosines.argmax(-1)
    probabilities = (SCALE * cosines).softmax(-1).gather(-1, classes[:, None])[:, 0]
    return classes.numpy(), probabilities.numpy()


def as_a_view(pixels, folder):
    return np.repeat(pixels, 2, axis=2)[:, :, ::2]


def as_a_reversed_map(pixels, folder):
    np.save(folder / "pixels.npy", pixels[::-1])
    return np.load(folder / "pixels.npy", mmap_mode="r")[::-1]


def as_images_decoded_on_the_fly(pixels, folder):
    return LazyPixels(lambda i: Image.fromarray(pixels[i]), len(pixels), SIZE, workers=2)


@pytest.mark.parametrize("count", [1, 64, 150])
@pytest.mark.parametrize("given", [as_a_view, as_a_reversed_map, as_images_decoded_on_the_fly])
def test_predictions_are_those_of_batches_in_turn_to_the_bit(backbone, tmp_path, given, count):
    pixels = pictures(count)
    found = Classifier(backbone, PROMPTS, SCALE).predict(given(pixels, tmp_path))
    for ours, theirs in zip(found, of_batches_in_turn(backbone, pixels), strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)


class Watched:
    """Pixels that note how far they were read, and may have a damaged image."""

    def __init__(self, pixels, damaged=None):
        self.pixels, self.damaged, self.read = pixels, damaged, 0

    def __len__(self):
        return len(self.pixels)

    def __getitem__(self, chosen):
        if self.damaged in range(len(self))[chosen]:
            raise UserError(f"{self.damaged}.jpg: not a readable image")
        self.read = range(len(self))[chosen].stop
        return self.pixels[chosen]


def test_batches_are_read_ahead_by_a_thread_but_only_a_few_of_them():
    pixels = Watched(pictures(20))
    for number, batch in enumerate(read_ahead(pixels, 2, pinned=False), start=1):
        np.testing.assert_array_equal(batch, pixels.pixels[2 * number - 2 : 2 * number])
        # One for each that waits, and the one that was just taken.
        assert 2 * number <= pixels.read <= 2 * (number + AHEAD)
    assert pixels.read == 20


def reading_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("ThreadPool")]


def test_an_unreadable_image_is_named_after_the_batches_before_it(backbone):
    pixels, seen = Watched(pictures(200), damaged=130), []
    with pytest.raises(UserError, match=r"130\.jpg"):
        seen += Classifier(backbone, PROMPTS, SCALE).features(pixels)
    features = Classifier(backbone, PROMPTS, SCALE).features(pixels)
    assert [len(next(features)) for _ in range(2)] == [64, 64]
    features.close()
    assert reading_threads() == []


class Limited:
    """A vision tower for which memory runs out with more images than a limit.

    The sizes of all batches are noted, and whether tensors of a failed one were alive at the next.
    """

    def __init__(self, tower, limit, error):
        self.tower, self.limit, self.error = tower, limit, error
        self.sizes, self.alive, self._activations = [], [], lambda: None

    def __call__(self, images):
        self.sizes.append(len(images))
        self.alive.append(self._activations() is not None)
        activations = images.float()
        self._activations = weakref.ref(activations)
        if len(images) > self.limit:
            kind, text = self.error
            raise kind(text)
        return self.tower(images)


ERRORS = {
    "gpu": (torch.OutOfMemoryError, "CUDA out of memory. Tried to allocate 1.59 GiB."),
    "cpu": (RuntimeError, "[enforce fail] DefaultCPUAllocator: can't allocate memory"),
}


@pytest.fixture
def released(monkeypatch):
    """Batches of eight images, and a list of the calls that would release memory.

    Garbage is not collected in them, so nothing may need it.
    """
    calls = []
    monkeypatch.setattr(module, "BATCH_SIZES", {"cpu": 8})
    monkeypatch.setattr(module, "release_memory", calls.append)
    gc.disable()
    yield calls
    gc.enable()


def limited(backbone, limit, error=ERRORS["gpu"], **options):
    classifier = Classifier(backbone, PROMPTS, SCALE, **options)
    classifier.vision = Limited(classifier.vision, limit, error)
    return classifier


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize(
    ("limit", "sizes"),
    [
        (7, [8, 4, 4, 4, 4, 3]),
        (2, [8, 4, *[2] * 9, 1]),
        (1, [8, 4, 2, *[1] * 19]),
    ],
)
def test_batches_are_halved_until_they_fit(backbone, released, limit, sizes, error):
    pixels = pictures(19)
    classifier = limited(backbone, limit, ERRORS[error])
    classes, probabilities = classifier.predict(pixels)
    assert classifier.vision.sizes == sizes
    assert not any(classifier.vision.alive)
    assert released == ["cpu"] * sum(size > limit for size in sizes)
    wanted, wanted_probabilities = of_batches_in_turn(backbone, pixels)
    np.testing.assert_array_equal(classes, wanted)
    np.testing.assert_allclose(probabilities, wanted_probabilities, rtol=1e-4)


def test_what_is_kept_for_later_is_given_up_first_and_only_once(backbone, released):
    kept = {"adapter": "engine"}

    def reclaim():
        kept.clear()
        classifier.vision.limit = 4

    classifier = limited(backbone, 2, reclaim=reclaim)
    assert len(classifier.predict(pictures(10))[0]) == 10
    assert kept == {}
    assert classifier.vision.sizes == [8, 8, 4, 4, 2]
    kept["adapter"] = "another"
    classifier.vision.limit = 2
    classifier.predict(pictures(4))
    assert kept
    assert classifier.vision.sizes[5:] == [4, 2, 2]


def test_nothing_is_given_up_or_halved_without_need(backbone, released):
    classifier = limited(backbone, 8, reclaim=lambda: pytest.fail("memory is not short"))
    classifier.predict(pictures(11))
    assert classifier.vision.sizes == [8, 3]


def test_too_little_memory_for_an_image_is_an_error_of_one_line(backbone):
    with pytest.raises(UserError, match=r"tiny in torch.float32 needs more memory") as caught:
        limited(backbone, 0).predict(pictures(3))
    assert "\n" not in str(caught.value)
    assert caught.value.__context__ is None  # nothing holds on to tensors


def test_other_errors_are_not_taken_for_a_lack_of_memory(backbone):
    error = RuntimeError, "CUDA error: an illegal memory access was encountered"
    with pytest.raises(RuntimeError, match="illegal memory access"):
        limited(backbone, 0, error).predict(pictures(3))


@pytest.mark.parametrize("tower", ["VisionTower", "TextTower"])
@pytest.mark.parametrize("enough", [True, False])
def test_a_classifier_is_built_in_the_memory_of_what_was_kept(backbone, monkeypatch, tower, enough):
    kept, attempts, build = {"adapter": "engine"}, [], getattr(module, tower)

    def within_memory(*arguments):
        attempts.append(len(kept))
        if kept or not enough:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return build(*arguments)

    monkeypatch.setattr(module, tower, within_memory)
    if not enough:
        with pytest.raises(UserError, match="needs more memory to classify an image"):
            Classifier(backbone, PROMPTS, SCALE, reclaim=kept.clear)
        assert attempts == [1, 0]
        return
    found = Classifier(backbone, PROMPTS, SCALE, reclaim=kept.clear)
    assert attempts == [1, 0]
    assert len(found.predict(pictures(3))[0]) == 3


# Heads are 64 wide, as in all of CLIP's models.
HALF = replace(
    SHAPE,
    vision=TowerConfig(width=128, layers=4, heads=2),
    text=TowerConfig(width=64, layers=3, heads=1),
)


@pytest.fixture(scope="module", params=["zero_shot", "adapted"])
def model(request):
    """A model whose weights fp16 holds exactly, as it holds OpenAI's, and one with an adapter."""
    found = tiny_backbone(shape=HALF)
    found = replace(found, weights={n: v.half().float() for n, v in found.weights.items()})
    if request.param == "zero_shot":
        return found
    adapter = trained_adapter(replace(LORA, blocks=2), found)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.mul_(0.2)  # as far from zero as trained ones are
    return replace(found, weights=merge(found.weights, adapter))


def cosines(backbone, precision):
    classifier = Classifier(backbone, PROMPTS, SCALE, "cpu", precision)
    (features,) = classifier.features(pictures(16))
    return features @ classifier.class_features.T


@pytest.mark.parametrize("tower", ["visual.transformer", "transformer"])
def test_values_too_large_for_fp16_are_an_error_and_no_prediction(backbone, tower):
    """The hidden layer of an MLP has some 100,000 here; fp16 ends at 65,504."""
    weights = dict(backbone.weights)
    weights[f"{tower}.resblocks.0.mlp.c_fc.bias"] = torch.full_like(
        weights[f"{tower}.resblocks.0.mlp.c_fc.bias"], 1e5
    )
    large = replace(backbone, weights=weights)
    Classifier(large, PROMPTS, SCALE).predict(pictures(3))
    with pytest.raises(UserError, match=r"tiny in torch.float16 .* not finite") as caught:
        Classifier(large, PROMPTS, SCALE, "cpu", "fp16").predict(pictures(3))
    assert "\n" not in str(caught.value)


def test_fp16_moves_cosines_by_little_and_by_less_than_bf16(model):
    wanted = cosines(model, "fp32")
    moved = {name: (cosines(model, name) - wanted).abs() for name in ("fp16", "bf16")}
    assert moved["fp16"].max() < 1e-3
    assert moved["fp16"].mean() < moved["bf16"].mean() / 4
