"""The figures of the miniature study, and random masks of them.

A figure is written as polylines separated by `/`. Each point is `xy`, where x and y count from 0 to
4, rightwards and downwards, on a grid of five by five points. A `+` marks a polyline whose inside
is filled. The captions of pretraining mention shapes, signs and letters, but neither objects nor
digits. Letters are included because a network has to know strokes before it can be adapted to
handwritten digits.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

OVERSAMPLING = 4  # masks are drawn larger by this factor and reduced, for smooth edges
BLURRED_SHARE = 0.15  # share of the masks that are blurred
BLUR = 4  # a blurred mask is reduced by this factor and enlarged again

# Figures of straight lines; `_curves` adds round ones and the star.
SHAPES = {
    "square": "+00 40 44 04",
    "triangle": "+20 44 04",
    "heart": "+21 30 41 42 24 02 01 10",
}
SIGNS = {
    "arrow": "02 42 / 20 42 24",
    "hook": "00 20 31 33 24 04",
    "ladder": "10 14 / 30 34 / 11 31 / 13 33",
    "wave": "02 11 22 33 42",
    "zigzag": "03 11 23 31 43",
}
LETTERS = {
    "a": "04 20 44 / 12 32",
    "b": "02 32 43 34 04 00 30 41 32",
    "c": "41 30 10 01 03 14 34 43",
    "d": "00 04 24 43 41 20 00",
    "e": "40 00 04 44 / 02 32",
    "f": "40 00 04 / 02 32",
    "g": "41 30 10 01 03 14 34 43 42 22",
    "h": "00 04 / 40 44 / 02 42",
    "j": "40 43 34 14 03",
    "k": "00 04 / 40 02 44",
    "l": "00 04 44",
    "m": "04 00 22 40 44",
    "n": "04 00 44 40",
    "p": "04 00 30 41 32 02",
    "r": "04 00 30 41 32 02 / 22 44",
    "s": "41 30 10 01 12 32 43 34 14 03",
    "t": "00 40 / 20 24",
    "u": "00 03 14 34 43 40",
    "v": "00 24 40",
    "w": "00 14 22 34 40",
    "x": "00 44 / 40 04",
    "y": "00 22 40 / 22 24",
    "z": "00 40 04 44",
}
OBJECTS = {
    "boat": "+03 43 34 14 / 20 23 / +20 42 22",
    "cup": "+00 30 34 04 / 31 41 43 33",
    "fish": "+12 21 31 42 33 23 / +12 01 03",
    "flag": "10 14 / +10 40 42 12",
    "hourglass": "+00 40 22 / +22 44 04",
    "house": "+20 42 44 04 02 / 41 40",
    "key": "02 11 22 13 02 / 22 42 43 / 32 33",
    "mushroom": "+02 01 10 30 41 42 / +12 32 34 14",
    "tree": "+20 43 03 / 23 24",
    "umbrella": "+02 01 10 30 41 42 / 22 24 14",
}


@dataclass(frozen=True)
class Line:
    """A polyline in [-1, 1]² with points (x, y), shape (n, 2), where y points downwards."""

    points: np.ndarray
    filled: bool


def _on_grid(text: str) -> tuple[Line, ...]:
    lines = []
    for part in map(str.strip, text.split("/")):
        points = np.array([[int(x) / 2 - 1, int(y) / 2 - 1] for x, y in part.strip("+").split()])
        lines.append(Line(points, part.startswith("+")))
    return tuple(lines)


def _polar(radii: np.ndarray, turns: np.ndarray) -> np.ndarray:
    """Return the points (n, 2) at these radii and clockwise turns from the top."""
    angles = 2 * np.pi * turns
    return np.stack([radii * np.sin(angles), -radii * np.cos(angles)], axis=1)


def _curves() -> dict[str, tuple[Line, ...]]:
    circle = _polar(np.ones(25), np.linspace(0, 1, 25))
    star = _polar(np.tile([1.0, 0.42], 5), np.linspace(0, 0.9, 10))
    bow = _polar(np.ones(15), np.linspace(0, 0.5, 15))
    spiral = _polar(np.linspace(0.05, 1, 30), np.linspace(0, 1.6, 30))
    return {
        "circle": (Line(circle, True),),
        "star": (Line(star, True),),
        "moon": (Line(np.concatenate([bow, bow[::-1] * [0.4, 1]]), True),),
        "ring": (Line(circle, False),),
        "spiral": (Line(spiral, False),),
    }


_ON_GRID = SHAPES | SIGNS | {f"letter {name}": text for name, text in LETTERS.items()} | OBJECTS
FIGURES = _curves() | {name: _on_grid(text) for name, text in _ON_GRID.items()}
"""The lines of each figure, by its name in captions and class names."""


def draw_masks(
    name: str, count: int, size: int, tilt: float, rng: np.random.Generator
) -> np.ndarray:
    """Draw masks of the figure `name`, uint8 (count, size, size): 255 inside, 0 outside.

    Each mask is rotated by up to `tilt` degrees to either side. Position, size, proportions, slant
    and stroke width vary, and some masks are blurred.
    """
    masks = np.empty((count, size, size), np.uint8)
    for mask in masks:
        canvas = _draw_one(FIGURES[name], size * OVERSAMPLING, tilt, rng)
        if rng.random() < BLURRED_SHARE:
            canvas = canvas.reduce(OVERSAMPLING * BLUR).resize((size, size), Image.BICUBIC)
        else:
            canvas = canvas.reduce(OVERSAMPLING)
        mask[:] = canvas
    return masks


def _draw_one(
    figure: tuple[Line, ...], side: int, tilt: float, rng: np.random.Generator
) -> Image.Image:
    # The half-size, the offset and the width of the stroke are fractions of the side.
    angle = np.deg2rad(rng.uniform(-tilt, tilt))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    width, height = rng.uniform(0.75, 1, 2)
    slant = np.array([[width, rng.uniform(-0.2, 0.2)], [0, height]])
    to_pixels = (turn @ slant).T * rng.uniform(0.27, 0.42) * side
    centre = (0.5 + rng.uniform(-0.08, 0.08, 2)) * side
    stroke = round(rng.uniform(0.06, 0.15) * side)
    canvas = Image.new("L", (side, side))
    brush = ImageDraw.Draw(canvas)
    for line in figure:
        points = [tuple(point) for point in line.points @ to_pixels + centre]
        if line.filled:
            brush.polygon(points, fill=255)
        else:
            brush.line(points, fill=255, width=stroke, joint="curve")
    return canvas
