"""Opening and decoding image files."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from blocklora.errors import UserError


@contextmanager
def open_image(path: str | Path) -> Iterator[Image.Image]:
    """Open an image file and read its header.

    Raises:
        UserError: The file is missing or not an image, or decoding it fails in the block.
    """
    try:
        with Image.open(path) as image:
            yield image
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(
            f"{path}: not a readable image ({error}); fetch or repair it, then run again"
        ) from None


def read_image(path: str | Path) -> Image.Image:
    """Return a decoded RGB image; its EXIF orientation is ignored, as in the protocol.

    Raises:
        UserError: The file is missing or cannot be decoded.
    """
    with open_image(path) as image:
        return image.convert("RGB")
