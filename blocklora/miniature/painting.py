"""Painting pictures from masks, colours and textures."""

import numpy as np

COLOURS = {
    "red": (214, 40, 40),
    "orange": (245, 140, 30),
    "yellow": (245, 220, 60),
    "green": (50, 160, 70),
    "blue": (40, 90, 210),
    "purple": (140, 60, 170),
    "white": (240, 240, 240),
}
PALETTE = np.array(list(COLOURS.values()))
TEXTURES = ("plain", "striped", "dotted", "checkered")
SECOND_SHADE = 0.35  # brightness of the dark parts of a texture, relative to the others


def draw_textures(kinds: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """Draw a random texture for each of `kinds`, bool (n, size, size), True in dark parts.

    `kinds` are indices into `TEXTURES`, shape (n,).
    """
    count = len(kinds)
    y, x = np.mgrid[:size, :size].astype(np.float32)
    angle, phase, other_phase = rng.uniform(0, 2 * np.pi, (3, count, 1, 1)).astype(np.float32)
    frequency = 2 * np.pi / size * rng.uniform(3.5, 6, (count, 1, 1)).astype(np.float32)
    u = np.sin(frequency * (np.cos(angle) * x + np.sin(angle) * y) + phase) > 0
    v = np.sin(frequency * (np.cos(angle) * y - np.sin(angle) * x) + other_phase) > 0
    return np.stack([np.zeros_like(u), u, u & v, u ^ v])[kinds, np.arange(count)]


def paint(
    masks: np.ndarray,
    figure: np.ndarray,
    ground: np.ndarray,
    dark: np.ndarray,
    noise: float,
    rng: np.random.Generator,
) -> np.ndarray:
    """Paint pictures, uint8 (n, size, size, 3).

    Args:
        masks: uint8 (n, size, size), 255 inside the figure.
        figure: RGB colour of each figure, (n, 3).
        ground: RGB colour of each background, (n, 3).
        dark: Bool (n, size, size), True where a figure has its second shade.
        noise: Standard deviation of the noise, in levels of 255.
        rng: Draws the noise.
    """
    cover = (masks / np.float32(255))[..., None]
    shade = np.where(dark, np.float32(SECOND_SHADE), np.float32(1))[..., None]
    picture = cover * shade * figure.astype(np.float32)[:, None, None]
    picture += (1 - cover) * ground.astype(np.float32)[:, None, None]
    picture += noise * rng.standard_normal(picture.shape, np.float32)
    return np.clip(picture, 0, 255).astype(np.uint8)


def vary(colours: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return RGB `colours` (n, 3) after a small random shift of each value."""
    return np.clip(colours + rng.normal(0, 12, colours.shape), 0, 255)


def dark_grounds(count: int, rng: np.random.Generator) -> np.ndarray:
    """Draw RGB colours (count, 3) of dark, nearly grey backgrounds."""
    return vary(np.repeat(rng.uniform(0, 70, (count, 1)), 3, axis=1), rng)
