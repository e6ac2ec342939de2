"""Image files, decoded."""

from pathlib import Path

from PIL import Image

from blocklora.errors import UserError


def read_image(path: str | Path) -> Image.Image:
    """Return an image file fully decoded as RGB; EXIF orientation is ignored, as in the protocol.

    Raises:
        UserError: the file is missing or cannot be decoded.
    """
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(
            f"{path}: not a readable image ({error}); fetch or repair it, then run again"
        ) from None
