"""Preprocessing of test images: RGB, resize and centre crop."""

import numpy as np
from PIL import Image


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
