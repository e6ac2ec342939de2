"""Random resized crops and flips, drawn for a whole batch and cut from decoded images.

The boxes follow the distribution of torchvision's `RandomResizedCrop`; the resizing is torch's
antialiased bicubic on 8-bit pixels, which agrees with PIL's to two of 256 grey levels.
"""

from collections.abc import Sequence
from math import log
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

ATTEMPTS = 10
ASPECT = (3 / 4, 4 / 3)


class Crops(NamedTuple):
    """Where to cut each image of a batch, in pixels, and which to flip; arrays of (images,)."""

    top: np.ndarray
    left: np.ndarray
    height: np.ndarray
    width: np.ndarray
    flip: np.ndarray


def draw_crops(
    sizes: np.ndarray,
    area: tuple[float, float],
    flip_probability: float,
    generator: np.random.Generator,
) -> Crops:
    """Return random crops of images of the given sizes.

    A box takes a uniform share of the area and a log-uniform aspect ratio in [3/4, 4/3]; of ten
    tries the first that fits is placed uniformly. Where none fits, the largest centred box of an
    allowed ratio is taken.

    Args:
        sizes: height and width of each image, shape (images, 2).
        area: smallest and largest share of the area.
        flip_probability: the probability of a horizontal flip.
        generator: the source of all random numbers.
    """
    full = sizes.astype(np.float64)
    height, width = full[:, :1], full[:, 1:]
    shares = generator.uniform(*area, (len(sizes), ATTEMPTS)) * height * width
    ratios = np.exp(generator.uniform(log(ASPECT[0]), log(ASPECT[1]), shares.shape))
    tries = np.stack([np.sqrt(shares / ratios), np.sqrt(shares * ratios)], -1).round()
    fits = ((tries > 0) & (tries <= full[:, None])).all(-1)
    boxes = tries[np.arange(len(sizes)), fits.argmax(1)]
    tallest, widest = np.round(width / ASPECT[0]), np.round(height * ASPECT[1])
    fallback = np.concatenate([np.minimum(height, tallest), np.minimum(width, widest)], 1)
    placed = fits.any(1, keepdims=True)
    boxes = np.where(placed, boxes, fallback)
    room = full - boxes
    places = np.floor(generator.uniform(size=(len(sizes), 2)) * (room + 1))
    corners = np.where(placed, places, np.floor(room / 2)).astype(int)
    flips = generator.uniform(size=len(sizes)) < flip_probability
    boxes = boxes.astype(int)
    return Crops(corners[:, 0], corners[:, 1], boxes[:, 0], boxes[:, 1], flips)


def cut(images: Sequence[np.ndarray], crops: Crops, size: int) -> Tensor:
    """Return the crops resized to (images, size, size, 3), uint8.

    `images` are uint8 (height, width, 3) arrays of any sizes.
    """
    batch = torch.empty(len(images), size, size, 3, dtype=torch.uint8)
    rows = zip(batch, images, *crops, strict=True)
    for target, image, top, left, height, width, flip in rows:
        # A copy, since stores are read-only and torch wants to be able to write.
        pixels = torch.from_numpy(image[top : top + height, left : left + width].copy())
        pixels = pixels.permute(2, 0, 1)[None]
        if (height, width) != (size, size):
            pixels = F.interpolate(pixels, (size, size), mode="bicubic", antialias=True)
        target.copy_((pixels.flip(3) if flip else pixels)[0].permute(1, 2, 0))
    return batch
