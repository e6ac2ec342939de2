"""The drawn datasets of the miniature study, as image folders `<split>/<class name>/<number>.png`.

- `mini_covered` shows coloured shapes that appear in the captions of pretraining.
- `mini_shifted` shows shapes and signs from these captions in a domain that is new to the model:
  dark on light, rotated and noisy.
- `mini_objects` shows objects that no caption mentions.
- `mini_digits` has real images: the handwritten digits that come with scikit-learn, from UCI's
  "Optical Recognition of Handwritten Digits".

`blocklora/data/registry/miniature.yaml` repeats the numbers of classes and images for verification.
"""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict
from itertools import product
from pathlib import Path
from zlib import crc32

import numpy as np
from PIL import Image
from tqdm import tqdm

from blocklora.data.download import locked
from blocklora.data.manifest import SPLITS
from blocklora.data.source import Source
from blocklora.errors import UserError
from blocklora.files import json_digest
from blocklora.miniature import painting
from blocklora.miniature.captions import NOISE, TILT
from blocklora.miniature.settings import Settings
from blocklora.miniature.shapes import OBJECTS, draw_masks
from blocklora.provenance import code_digest

IMAGES_PER_CLASS = {"train": 24, "val": 8, "test": 40}
DRAWN_PER_CLASS = sum(IMAGES_PER_CLASS.values())
DIGITS_PER_CLASS = {"train": 40, "val": 20}  # the other 114 to 123 of each digit are for testing

COVERED_COLOURS = ("red", "yellow", "green", "blue")
COVERED_SHAPES = ("circle", "square", "star")
SHIFTED_FIGURES = (
    *("circle", "square", "star", "triangle", "moon"),
    *("arrow", "ladder", "ring", "letter s", "letter x"),
)
SHIFTED_TILT = 60  # degrees
SHIFTED_NOISE = 24  # standard deviation, in levels of 255
SHIFTED_BRIGHTNESS = 0.4  # factor of the colours of figures
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

Painter = Callable[[int, np.random.Generator], Iterator[tuple[str, np.ndarray]]]
"""Given an image size, yields each class name with its pictures, uint8 (n, size, size, 3)."""


def draw_once(name: str, data_root: Path, settings: Settings | None) -> Source:
    """Return the place of the dataset `name` below `data_root`, after drawing it if it is missing.

    The name of the folder depends on the settings and the code that draws, so studies that draw
    differently can share a `data_root`. A finished folder never changes.

    Raises:
        UserError: The study has no `miniature` settings, or no drawn dataset has this name.
    """
    if settings is None:
        raise UserError(f"the dataset {name} is drawn, so the study needs `miniature` settings")
    digest = json_digest([asdict(settings), code_digest(__name__)])
    folder = data_root.absolute() / "drawn" / f"{name}-{digest[:12]}"
    with locked(data_root, folder.name):
        if not folder.exists():  # another study may have drawn it
            unfinished = folder.with_name(f".{folder.name}")
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(parents=True)
            draw_dataset(name, unfinished, settings)
            unfinished.rename(folder)
    return Source(name, str(folder), None, "drawn")


def draw_dataset(name: str, folder: Path, settings: Settings) -> None:
    """Draw the dataset `name` into `folder`, which exists and is empty.

    The images depend only on the name, and on the seed and image size in `settings`.

    Raises:
        UserError: No drawn dataset has this name.
    """
    if name not in DATASETS:
        raise UserError(f"{name}: no such drawn dataset; please use one of {', '.join(DATASETS)}")
    rng = np.random.default_rng([settings.seed, crc32(name.encode())])
    counts = DIGITS_PER_CLASS if name == "mini_digits" else IMAGES_PER_CLASS
    stops = [counts["train"], counts["train"] + counts["val"]]
    for classname, pictures in tqdm(
        DATASETS[name](settings.image_size, rng), desc=f"drawing {name}", unit="class", disable=None
    ):
        for split, part in zip(SPLITS, np.split(pictures, stops), strict=True):
            place = folder / split / classname.replace(" ", "_")
            place.mkdir(parents=True)
            for number, picture in enumerate(part):
                Image.fromarray(picture).save(place / f"{number:04d}.png")


def _covered(size: int, rng: np.random.Generator) -> Iterator[tuple[str, np.ndarray]]:
    for colour, shape in product(COVERED_COLOURS, COVERED_SHAPES):
        yield f"{colour} {shape}", _textured(shape, painting.COLOURS[colour], size, rng)


def _objects(size: int, rng: np.random.Generator) -> Iterator[tuple[str, np.ndarray]]:
    for name in OBJECTS:
        yield name, _textured(name, None, size, rng)


def _shifted(size: int, rng: np.random.Generator) -> Iterator[tuple[str, np.ndarray]]:
    for name in SHIFTED_FIGURES:
        masks = draw_masks(name, DRAWN_PER_CLASS, size, SHIFTED_TILT, rng)
        colours = painting.vary(_any_colours(rng) * SHIFTED_BRIGHTNESS, rng)
        plain = np.zeros(masks.shape, bool)
        grounds = 255 - painting.dark_grounds(DRAWN_PER_CLASS, rng)
        yield name, painting.paint(masks, colours, grounds, plain, SHIFTED_NOISE, rng)


def _digits(size: int, rng: np.random.Generator) -> Iterator[tuple[str, np.ndarray]]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    levels = np.round(digits.images * (255 / 16)).astype(np.uint8)  # the levels are 0 to 16
    for value, name in enumerate(DIGITS):
        images = levels[digits.target == value]
        yield f"digit {name}", np.stack([_enlarge(x, size) for x in rng.permutation(images)])


def _enlarge(digit: np.ndarray, size: int) -> np.ndarray:
    """Return a grey digit as RGB (size, size, 3), with a margin like that of drawn figures."""
    inner = 3 * size // 4
    picture = Image.new("RGB", (size, size))
    enlarged = Image.fromarray(digit).resize((inner, inner), Image.BICUBIC)
    picture.paste(enlarged.convert("RGB"), ((size - inner) // 2,) * 2)
    return np.asarray(picture)


def _any_colours(rng: np.random.Generator) -> np.ndarray:
    return painting.PALETTE[rng.integers(len(painting.PALETTE), size=DRAWN_PER_CLASS)]


def _textured(
    name: str, colour: tuple[int, ...] | None, size: int, rng: np.random.Generator
) -> np.ndarray:
    """Paint a figure with the tilt, noise and textures of pretraining, uint8 (n, size, size, 3).

    Without a colour, each picture has a random one.
    """
    count = DRAWN_PER_CLASS
    masks = draw_masks(name, count, size, TILT, rng)
    colours = np.tile(colour, (count, 1)) if colour else _any_colours(rng)
    kinds = rng.integers(len(painting.TEXTURES), size=count)
    textures = painting.draw_textures(kinds, size, rng)
    varied, grounds = painting.vary(colours, rng), painting.dark_grounds(count, rng)
    return painting.paint(masks, varied, grounds, textures, NOISE, rng)


DATASETS: dict[str, Painter] = {
    "mini_covered": _covered,
    "mini_shifted": _shifted,
    "mini_objects": _objects,
    "mini_digits": _digits,
}
