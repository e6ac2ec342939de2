"""What the tests on a GPU share: models, engines, steps, the loop, processes.

All that these tests import of the package stands here.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from multiprocessing import get_context
from typing import Any

import numpy as np
import torch
from PIL import Image

from blocklora.adapters.merge import merge
from blocklora.backbones.published import published_config
from blocklora.backbones.shape import TowerConfig
from blocklora.data.pixels import LazyPixels
from blocklora.engine.batches import Batches
from blocklora.engine.classifier import Classifier
from blocklora.engine.fast import Chunks, FastEngine
from blocklora.engine.loop import Keeper, train
from blocklora.engine.memory import free_bytes
from blocklora.engine.needs import Setting, planned_peak_bytes
from blocklora.engine.plan import USABLE_SHARE, train_within_memory
from blocklora.engine.reference import ReferenceEngine
from blocklora.errors import Interrupted
from blocklora.methods.base import Compute, Shots, Task
from blocklora.methods.low_rank import LowRankAdapter
from blocklora.performance.measure import settings
from blocklora.performance.trial import random_backbone
from blocklora.runs.device import Meter, device_name, require_device
from blocklora.runs.keeper import CheckpointKeeper
from tests.tiny import LORA, RECIPE, SHAPE, tiny_backbone, trained_adapter

__all__ = [
    "DEVICE",
    "USABLE_SHARE",
    "WHOLE",
    "Chunks",
    "FastEngine",
    "Interrupted",
    "ReferenceEngine",
    "alone",
    "apart",
    "backbone",
    "batch",
    "classifier",
    "cosines",
    "device_name",
    "engine",
    "fits",
    "free_bytes",
    "planned_peak_bytes",
    "recordings",
    "require_device",
    "small",
    "steps",
    "stored",
    "train_within_memory",
    "trained",
    "vit_b16",
]

DEVICE = "cuda"
# Heads are 64 wide, as in all of CLIP's models, so that the same attention kernels are taken.
SMALL = replace(
    SHAPE,
    vision=TowerConfig(width=128, layers=3, heads=2),
    text=TowerConfig(width=64, layers=2, heads=1),
)
# Twelve prompts of four lengths, two of them equal; a text ends at the largest token there is.
END = SHAPE.vocab_size - 1
PROMPTS = (*((1, *[2 + i] * (1 + i % 4), END) for i in range(11)), (1, 2, END))
WHOLE = Chunks()


def small(precision: str = "fp32", **adapter: Any) -> Setting:
    """Return a model for tests of what is computed; dropout is on unless `adapter` says so."""
    config = replace(LORA, **{"blocks": 2, "dropout": 0.25, **adapter})
    return Setting(SMALL, config, PROMPTS, batch_size=4, precision=precision)


def vit_b16(classes: int, precision: str) -> Setting:
    """Return the paper's model and adapter with batches of 32, for tests of memory."""
    shape = replace(published_config("ViT-B-16-quickgelu"), context_length=77)
    (setting,) = settings(shape, [classes], [32], ["both"], [precision])
    return setting


@cache
def backbone(shape):
    """Return random weights of a shape."""
    return tiny_backbone(shape=shape) if shape == SMALL else random_backbone(shape)


def engine(setting, kind=FastEngine, device=None, **options):
    """Return an engine whose adapter is away from zero, the same at every call."""
    device = device or DEVICE
    require_device(device, "fp32")  # chooses kernels of attention and products
    adapter = trained_adapter(setting.adapter, backbone(setting.clip))
    for parameter in adapter.parameters():
        # As far from zero as trained ones are, so that half precision is not strained.
        parameter.data = 0.2 * parameter.data.to(device)
    return kind(
        backbone(setting.clip),
        adapter,
        setting.prompts,
        logit_scale=100.0,
        seed=1,
        device=device,
        precision=setting.precision,
        **options,
    )


def batch(setting, size, seed=0):
    """Return random pixels and labels, on the CPU."""
    generator = torch.Generator().manual_seed(seed)
    shape = (size, setting.clip.image_size, setting.clip.image_size, 3)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    return pixels, torch.randint(0, len(setting.prompts), (size,), generator=generator)


def steps(subject, setting, sizes):
    """Return loss and gradients of steps with batches of the given sizes, on the CPU."""
    scaler = torch.amp.GradScaler(subject.device.type, enabled=False)
    parameters = subject.adapter.parameters()
    results = []
    for number, size in enumerate(sizes):
        for parameter in parameters:
            parameter.grad = None
        inputs = (value.to(subject.device) for value in batch(setting, size, number))
        loss, _ = subject.step(*inputs, number, scaler)
        results += [loss.detach().cpu(), *(parameter.grad.cpu() for parameter in parameters)]
    return results


def apart(found, wanted):
    """Return the largest relative difference, in norm, of tensors from those wanted."""
    differences = [
        (one.double() - other.double()).norm() / other.double().norm().clamp_min(1e-30)
        for one, other in zip(found, wanted, strict=True)
    ]
    return torch.stack(differences).max().item()  # NaN if any is


def recordings(subject):
    """Return how many CUDA graphs an engine has recorded, 0 if it computes without them."""
    return len(subject._recordings._recordings) if subject.recorded else 0


def classifier(setting, adapter=None, device=None, reclaim=None):
    """Return a classifier, with an adapter or without."""
    found = backbone(setting.clip)
    if adapter is not None:
        found = replace(found, weights=merge(found.weights, adapter))
    device = device or DEVICE
    return Classifier(found, setting.prompts, 100.0, device, setting.precision, reclaim)


def cosines(setting, pixels, adapter=None, device=None):
    """Return the cosine of each image with each class, on the CPU."""
    tested = classifier(setting, adapter, device)
    return (torch.cat([*tested.features(pixels)]) @ tested.class_features.T).cpu()


def stored(pixels, folder, kind):
    """Return pixels as they lie in a store: mapped, mapped in reverse order, or made when read."""
    if kind == "lazy":
        return LazyPixels(lambda i: Image.fromarray(pixels[i]), len(pixels), pixels.shape[1], 3)
    step = -1 if kind == "reversed" else 1
    np.save(folder / "pixels.npy", pixels[::step])
    return np.load(folder / "pixels.npy", mmap_mode="r")[::step]


class Watched(Keeper):
    """Keeps nothing, and calls a function after every step."""

    def __init__(self, after_step):
        self.run, self._call = "gpu", after_step

    def after_step(self, done, steps, unfinished):
        self._call()


class Pictures:
    """Random images, somewhat larger than the crops."""

    def __init__(self, count, size):
        shape = (count, size + 8, size + 4, 3)
        self.pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)

    def __len__(self):
        return len(self.pixels)

    def image(self, index):
        return self.pixels[index]


def trained(
    setting,
    count,
    images,
    *,
    log_every=5,
    chunks=WHOLE,
    cuda_graphs=True,
    checkpoint=None,
    interval=0,
    after_step=lambda: None,
):
    """Return an engine after `count` steps of the loop on so many images, and their history.

    Batches are prepared by threads, as for a run on a GPU; the last of an epoch has fewer images
    unless the batch size divides `images`. There is a checkpoint, continued from if it is there,
    if its path is given. `after_step` returns the name of a signal to stop at, or None.
    """
    recipe = replace(
        RECIPE,
        iterations_per_shot=count,
        batch_size=setting.batch_size,
        learning_rate=1e-3,
        log_every=log_every,
    )
    labels = torch.arange(images) % len(setting.prompts)
    size = setting.clip.image_size
    pictures = Pictures(images, size)
    batches = Batches(pictures, labels, recipe, size, 0, 2, DEVICE == "cuda")
    subject = engine(setting, chunks=chunks, cuda_graphs=cuda_graphs)
    keeper = Watched(after_step)
    if checkpoint is not None:
        keeper = CheckpointKeeper("gpu", checkpoint, "digest", interval, stop_signal=after_step)
    return subject, train(subject, batches, recipe, count, keeper)


def fits(setting, seeds):
    """Return facts and costs of fits one after the other in one process, as in a run."""
    names = [str(number) for number in range(len(setting.prompts))]
    task = Task(backbone(setting.clip), names, lambda prompt: setting.prompts)
    recipe = replace(RECIPE, iterations_per_shot=4, batch_size=setting.batch_size)
    images, results = Pictures(6, setting.clip.image_size), []
    compute = Compute(DEVICE, setting.precision, "fast", workers=2)
    for seed in seeds:
        meter, shots = Meter(compute), Shots(images, np.arange(6), 1, seed)
        made = LowRankAdapter().fit(setting.adapter, recipe, task, shots, compute, Keeper())
        results.append((made.facts, meter.cost()))
    return results


def alone(function: Callable[..., Any], *arguments: Any, seconds: float = 200) -> Any:
    """Return what `function` does in a process of its own, with which its CUDA context ends."""
    with get_context("spawn").Pool(1) as pool:
        return pool.apply_async(function, arguments).get(seconds)
