"""Preprocessing of test images: RGB, resize and centre crop."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from blocklora.data.pixels import ShotImages

AT_A_TIME = 256  # images in a batch, to limit memory


def evaluation_transform(image: Image.Image, size: int) -> np.ndarray:
    """Return an image as RGB after bicubic resizing and a centre crop, uint8 (size, size, 3).

    The short side becomes `size`, and the long side is scaled by the same factor and rounded down.
    Bit for bit, the result is that of torchvision's `Resize(size, BICUBIC)` and `CenterCrop(size)`
    on RGB images of PIL, with which CLIP-LoRA evaluates (MaxZanella/CLIP-LoRA@358f0d7
    `clip/clip.py`, `_transform`).
    """
    if image.mode != "RGB":  # convert() would copy even an RGB image
        image = image.convert("RGB")
    width, height = image.size
    scale = min(width, height)
    width, height = int(size * width / scale), int(size * height / scale)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return np.asarray(image.crop((left, top, left + size, top + size)))


def preprocessed(images: "ShotImages", size: int) -> Iterator[np.ndarray]:
    """Yield batches of training images preprocessed like test images, uint8 (n, size, size, 3)."""
    for start in range(0, len(images), AT_A_TIME):
        chosen = range(start, min(start + AT_A_TIME, len(images)))
        yield np.stack(
            [evaluation_transform(Image.fromarray(images.image(i)), size) for i in chosen]
        )
