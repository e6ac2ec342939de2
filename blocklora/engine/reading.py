"""Batches of preprocessed images, which a thread reads ahead of the device that encodes them."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

AHEAD = 2
"""The number of batches that wait in memory at most, besides the one that is being encoded."""


class Pixels(Protocol):
    """Preprocessed images, uint8 (images, size, size, 3), such as an array or a memory map."""

    def __len__(self) -> int:
        """Return the number of images."""

    def __getitem__(self, chosen: slice, /) -> np.ndarray:
        """Return some of the images."""


def read_ahead(pixels: Pixels, batch_size: int, pinned: bool) -> Iterator[Tensor]:
    """Yield batches of images in order, uint8 (images, size, size, 3), on the CPU.

    An error of `pixels` is raised in its turn.

    Args:
        pixels: The images.
        batch_size: Number of images in a batch; the last one may be smaller.
        pinned: True to put batches into pinned memory, from which they are copied to a GPU
            asynchronously. PyTorch does not use such memory again before the copy is complete.
    """

    def read(start: int) -> Tensor:
        found = pixels[start : start + batch_size]
        images = torch.empty(found.shape, dtype=torch.uint8, pin_memory=pinned)
        np.copyto(images.numpy(), found)
        return images

    waiting: deque[Future[Tensor]] = deque()
    pool = ThreadPoolExecutor(1)
    try:
        for start in range(0, len(pixels), batch_size):
            waiting.append(pool.submit(read, start))
            if len(waiting) > AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
