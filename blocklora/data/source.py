"""`source.json`: where the images of a dataset are and what they came from."""

from dataclasses import asdict, dataclass
from pathlib import Path

from blocklora.errors import UserError
from blocklora.fields import from_values
from blocklora.files import read_json, write_json

ORIGINS = ("existing", "downloaded", "drawn", "user")


@dataclass(frozen=True)
class Source:
    """Where the images of a dataset are.

    Attributes:
        image_root: absolute folder that image paths are relative to.
        split_file: absolute path of the split file, or None.
        origin: one of `ORIGINS`.
        files: name, sha256 and bytes of every file the dataset was made from, where known.
    """

    dataset: str
    image_root: str
    split_file: str | None
    origin: str
    files: tuple[dict, ...] = ()


def write_source(path: str | Path, source: Source) -> None:
    """Write `source.json`."""
    write_json(path, asdict(source))


def read_source(path: str | Path) -> Source:
    """Read `source.json`.

    Raises:
        UserError: the file is missing or malformed, or the folder is gone.
    """
    record = read_json(path)
    try:
        source = from_values(Source, record)
        root = Path(source.image_root)
        if source.origin not in ORIGINS:
            raise ValueError(f"origin is {source.origin!r}")
    except (AttributeError, TypeError, ValueError) as error:
        raise UserError(
            f"{path}: not a source record ({error}); make it with `blocklora fetch-dataset`"
        ) from None
    if not root.is_dir():
        raise UserError(
            f"{path}: the image folder {root} of {source.dataset} is gone; "
            "run `blocklora fetch-dataset` again"
        )
    return source
