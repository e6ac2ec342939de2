"""Reading and writing `source.json`, which tells where the images of a dataset are."""

from dataclasses import asdict, dataclass
from pathlib import Path

from blocklora.errors import UserError
from blocklora.fields import from_values
from blocklora.files import read_json, write_json

ORIGINS = ("existing", "downloaded", "drawn", "user")


@dataclass(frozen=True)
class Source:
    """The place of a dataset's images.

    Attributes:
        dataset: The name of the dataset.
        image_root: The absolute path of the folder that image paths are relative to.
        split_file: The absolute path of the file that assigns images to classes and splits: a split
            file, the user's CSV file, or the devkit of ImageNet, which may be a folder. None if the
            folders of the images say everything.
        origin: One of `ORIGINS`: found below the data root, unpacked there from archives, drawn, or
            the user's own.
        files: The name, "sha256" and "bytes" of each file that the dataset was made from, as far as
            they are known.
    """

    dataset: str
    image_root: str
    split_file: str | None
    origin: str
    files: tuple[dict, ...] = ()


def write_source(path: str | Path, source: Source) -> None:
    """Write a source to `path` as JSON."""
    write_json(path, asdict(source))


def read_source(path: str | Path) -> Source:
    """Return the source in the file that `write_source` wrote.

    Raises:
        UserError: The file is missing or malformed, or the folder of the images is gone.
    """
    record = read_json(path)
    try:
        source = from_values(Source, record)
        root = Path(source.image_root)
        if source.origin not in ORIGINS:
            raise ValueError(f"origin is {source.origin!r}, not one of {', '.join(ORIGINS)}")
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
