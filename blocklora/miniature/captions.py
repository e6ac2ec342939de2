"""An endless source of image–caption pairs for pretraining."""

from dataclasses import dataclass

import numpy as np

from blocklora.miniature import painting
from blocklora.miniature.shapes import FIGURES, OBJECTS, draw_masks

NAMES = tuple(name for name in FIGURES if name not in OBJECTS)
FILLED = np.array([FIGURES[name][0].filled for name in NAMES])
FORMS = (
    "a photo of a {}.",
    "a picture of a {}.",
    "a drawing of a {}.",
    "the {}.",
    "{}",
)
# The details that captions mention besides the name of the figure. All captions of a batch use the
# same details, so a caption that is true of another picture equals that picture's caption. Two of
# the four choices are the bare name, because colours alone would tell most pairs apart.
DETAILS = ((), (), ("colour",), ("colour", "texture"))
MASKS_PER_FIGURE = 60
TILT = 15  # degrees
NOISE = 6  # standard deviation, in levels of 255


@dataclass(frozen=True)
class Batch:
    """Pictures, uint8 (n, size, size, 3), and the indices of what they show, each (n,).

    The indices refer to `NAMES`, `painting.COLOURS` and `painting.TEXTURES`.
    """

    pictures: np.ndarray
    figures: np.ndarray
    colours: np.ndarray
    textures: np.ndarray


class Pairs:
    """A source of pairs, which depend only on the size in pixels and the random generator."""

    def __init__(self, size: int, rng: np.random.Generator) -> None:
        """Draw the masks from which all pictures are made."""
        self.size, self.rng = size, rng
        self._masks = np.stack([draw_masks(n, MASKS_PER_FIGURE, size, TILT, rng) for n in NAMES])
        # Half of the pictures show filled shapes, although few of the figures are filled.
        weights = np.where(FILLED, 1 / FILLED.sum(), 1 / (~FILLED).sum())
        self._weights = weights / weights.sum()

    def draw(self, count: int) -> Batch:
        """Draw `count` new pictures; only filled figures have a texture."""
        rng = self.rng
        figures = rng.choice(len(NAMES), count, p=self._weights)
        colours = rng.integers(len(painting.COLOURS), size=count)
        textures = rng.integers(len(painting.TEXTURES), size=count) * FILLED[figures]
        pictures = painting.paint(
            self._masks[figures, rng.integers(MASKS_PER_FIGURE, size=count)],
            painting.vary(painting.PALETTE[colours], rng),
            painting.dark_grounds(count, rng),
            painting.draw_textures(textures, self.size, rng),
            NOISE,
            rng,
        )
        return Batch(pictures, figures, colours, textures)

    def captions(self, batch: Batch) -> list[str]:
        """Return a caption for each picture, all in the same form and with the same details."""
        details = DETAILS[self.rng.integers(len(DETAILS))]
        form = FORMS[self.rng.integers(len(FORMS))]
        return [
            form.format(describe(*indices, details))
            for indices in zip(batch.figures, batch.colours, batch.textures, strict=True)
        ]


def describe(figure: int, colour: int, texture: int, details: tuple[str, ...]) -> str:
    """Describe a picture, as in "blue striped star"; the texture "plain" is not mentioned."""
    words = [NAMES[figure]]
    if "texture" in details and painting.TEXTURES[texture] != "plain":
        words.insert(0, painting.TEXTURES[texture])
    if "colour" in details:
        words.insert(0, list(painting.COLOURS)[colour])
    return " ".join(words)


def all_captions() -> list[str]:
    """Return all possible captions."""
    described = {
        describe(figure, colour, texture, details)
        for figure, filled in enumerate(FILLED)
        for colour in range(len(painting.COLOURS))
        for texture in range(len(painting.TEXTURES) if filled else 1)
        for details in DETAILS
    }
    return [form.format(words) for form in FORMS for words in sorted(described)]
