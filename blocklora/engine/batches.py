"""Training batches: the order of the images, and their augmented pixels."""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from blocklora.engine.augment import cut, draw_crops
from blocklora.engine.randomness import numpy_generator
from blocklora.engine.recipe import Recipe

Batch = tuple[Tensor, Tensor]
"""Pixels, uint8 (images, size, size, 3), and labels, int64 (images,)."""

IGNORED = -100
"""Label of padding images: cross-entropy ignores it, and no prediction ever equals it."""


class Images(Protocol):
    """Decoded images, which may differ in size."""

    def __len__(self) -> int:
        """Return the number of images."""

    def image(self, index: int) -> np.ndarray:
        """Return one image, uint8 (height, width, 3)."""


def batch_indices(step: int, images: int, batch_size: int, seed: int) -> np.ndarray:
    """Return the indices of the images in a step, shape (batch,); steps are counted from 0.

    Every epoch is a new permutation of the images, and its last batch may be smaller.
    """
    epoch, position = divmod(step, -(-images // batch_size))
    order = numpy_generator(seed, "order", epoch).permutation(images)
    return order[position * batch_size : (position + 1) * batch_size]


@dataclass(frozen=True)
class Batches:
    """The augmented batches of one run.

    Attributes:
        images: The decoded training images.
        labels: Their labels, int64 (images,).
        recipe: The hyperparameters, which include batch size and augmentation.
        size: Side of the crops in pixels.
        seed: The seed of the run.
        workers: Number of threads, each of which prepares one batch ahead; 0 prepares none ahead.
        for_gpu: True to pad smaller batches with black images labelled `IGNORED`, because recorded
            steps and planned memory need batches of one size, and to put batches into pinned
            memory, from which they are copied to a GPU asynchronously.
    """

    images: Images
    labels: Tensor
    recipe: Recipe
    size: int
    seed: int
    workers: int
    for_gpu: bool = False

    def batch(self, step: int) -> Batch:
        """Return the pixels and labels of one step."""
        chosen = batch_indices(step, len(self.images), self.recipe.batch_size, self.seed)
        images: Sequence[np.ndarray] = [self.images.image(index) for index in chosen]
        crops = draw_crops(
            np.array([image.shape[:2] for image in images]),
            self.recipe.crop_scale,
            self.recipe.flip_probability,
            numpy_generator(self.seed, "augmentation", step),
        )
        pixels, labels = cut(images, crops, self.size), self.labels[chosen]
        if not self.for_gpu:
            return pixels, labels
        missing = min(self.recipe.batch_size, len(self.images)) - len(chosen)
        pixels = F.pad(pixels, (0, 0, 0, 0, 0, 0, 0, missing))
        labels = F.pad(labels, (0, missing), value=IGNORED)
        return pixels.pin_memory(), labels.pin_memory()

    def iterate(self, first: int, last: int) -> Iterator[Batch]:
        """Yield the batches of the steps `first` to `last` − 1 in order."""
        if self.workers == 0:
            yield from map(self.batch, range(first, last))
            return
        waiting: deque[Future[Batch]] = deque()
        # Several batches are prepared at once, so each thread computes alone. If each had helpers,
        # there would be more threads than cores.
        with ThreadPoolExecutor(self.workers, "batch", torch.set_num_threads, (1,)) as pool:
            for step in range(first, last):
                waiting.append(pool.submit(self.batch, step))
                if len(waiting) > self.workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
