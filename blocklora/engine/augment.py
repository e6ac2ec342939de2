"""Random resized crops and horizontal flips of whole batches.

The crop boxes follow the distribution of torchvision's `RandomResizedCrop`. Crops are resized with
torch's antialiased bicubic filter on 8-bit pixels, which usually stays within two of 256 grey
levels of PIL's result.
"""

from collections.abc import Sequence
from math import log
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

# The values of torchvision's `RandomResizedCrop`.
ATTEMPTS = 10
ASPECT = (3 / 4, 4 / 3)


class Crops(NamedTuple):
    """The crops of a batch, as arrays of shape (images,).

    Attributes:
        top, left: First row and first column of each box.
        height, width: Size of each box in pixels.
        flip: True if the crop is flipped horizontally.
    """

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
    """Draw random crops of images whose heights and widths are `sizes`, shape (images, 2).

    A box covers a share of the image that is uniform between the two values of `area`, and its
    aspect ratio is log-uniform in [3/4, 4/3]. Of the ten boxes that are drawn for an image, the
    first one that fits is placed uniformly. If none fits, the crop is the largest centred box with
    an allowed aspect ratio.
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
    """Return the crops of images, resized and flipped, as uint8 (images, size, size, 3).

    Each image is uint8 (height, width, 3).
    """
    batch = torch.empty(len(images), size, size, 3, dtype=torch.uint8)
    rows = zip(batch, images, *crops, strict=True)
    for target, image, top, left, height, width, flip in rows:
        # A copy, because torch warns about read-only memory, and image stores are read-only.
        pixels = torch.from_numpy(image[top : top + height, left : left + width].copy())
        pixels = pixels.permute(2, 0, 1)[None]
        if (height, width) != (size, size):
            pixels = F.interpolate(pixels, (size, size), mode="bicubic", antialias=True)
        target.copy_((pixels.flip(3) if flip else pixels)[0].permute(1, 2, 0))
    return batch
