"""Reading and writing the CSV files that list images: manifests and shots lists.

A manifest lists all images of a dataset, with the columns `path,label,classname,split`: training,
then validation, then test images, each in the order of the split. The order matters because
few-shot sampling visits classes in the order in which they first appear. A shots list, with the
columns `part,path,label,classname`, lists the images drawn for training and validation. Paths are
POSIX paths below the `image_root` of `source.json`. Names that are not UTF-8 keep their bytes,
which are surrogate escapes in memory.
"""

import csv
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from sys import intern
from typing import NamedTuple

from blocklora.errors import UserError
from blocklora.files import atomic_path

SPLITS = ("train", "val", "test")
SHOTS_COLUMNS = ("part", "path", "label", "classname")


class LabelledImage(NamedTuple):
    """An image of a dataset; `split` is "train", "val" or "test"."""

    path: str
    label: int
    classname: str
    split: str


MANIFEST_COLUMNS = LabelledImage._fields


def write_manifest(path: str | Path, images: Iterable[LabelledImage]) -> None:
    """Write a manifest, without holding all images in memory."""
    _write_csv(path, MANIFEST_COLUMNS, images)


def write_shots(path: str | Path, images: Iterable[LabelledImage]) -> None:
    """Write a shots list, whose column `part` is the split of an image."""
    _write_csv(path, SHOTS_COLUMNS, ((i.split, i.path, i.label, i.classname) for i in images))


def iterate_manifest(path: str | Path) -> Iterator[LabelledImage]:
    """Yield the images of a manifest, without holding all of them in memory.

    Raises:
        UserError: The file is missing, has other columns or has a malformed row.
    """
    return _iterate_csv(path, MANIFEST_COLUMNS, "make-manifest")


def read_manifest(path: str | Path) -> list[LabelledImage]:
    """Return the images of a manifest; see `iterate_manifest` for errors."""
    return list(iterate_manifest(path))


def read_shots(path: str | Path, part: str | None = None) -> list[LabelledImage]:
    """Return the images of a shots list, or of its part "train" or "val", in the order of drawing.

    Raises:
        UserError: The file is missing, has other columns or has a malformed row.
    """
    images = _iterate_csv(path, SHOTS_COLUMNS, "shots")
    return [image for image in images if part in (None, image.split)]


def classnames(images: Iterable[LabelledImage]) -> list[str]:
    """Return the class names in the order of the labels.

    Raises:
        UserError: Labels are not 0, 1, 2, …, or a label has two names.
    """
    names: dict[int, str] = {}
    for image in images:
        if names.setdefault(image.label, image.classname) != image.classname:
            raise UserError(
                f"label {image.label} has two class names, {names[image.label]!r} and "
                f"{image.classname!r} (at {image.path!r}); correct the split or CSV file"
            )
    gaps = sorted(set(range(len(names))) - names.keys())
    if gaps:
        raise UserError(f"labels must be 0 to {len(names) - 1}, but {gaps[0]} has no image")
    return [names[label] for label in range(len(names))]


def check_relative(path: str, where: str | Path) -> str:
    """Return `path` if it stays below the image root.

    Raises:
        UserError: It is empty or absolute, or contains `..` or a null character. The message begins
            with `where`.
    """
    parts = PurePosixPath(path)
    if not path or parts.is_absolute() or ".." in parts.parts or "\0" in path:
        raise UserError(f"{where}: image path {path!r} is not a path below the image folder")
    return path


def _write_csv(path: str | Path, columns: Sequence[str], rows: Iterable[tuple]) -> None:
    with (
        atomic_path(path) as temporary,
        temporary.open("w", encoding="utf-8", errors="surrogateescape", newline="") as stream,
    ):
        writer = csv.writer(stream, lineterminator="\n")
        # Before Python 3.13, the writer does not quote a lone carriage return, which the reader
        # would take for the end of a row.
        quoting = csv.writer(stream, lineterminator="\n", quoting=csv.QUOTE_ALL)
        writer.writerow(columns)
        for row in rows:
            odd = any("\r" in value for value in row if isinstance(value, str))
            (quoting if odd else writer).writerow(row)


def _iterate_csv(path: str | Path, columns: Sequence[str], command: str) -> Iterator[LabelledImage]:
    remedy = f"make it again with `blocklora {command}`"
    split_column = "part" if "part" in columns else "split"
    place, label, name, split = map(columns.index, ("path", "label", "classname", split_column))
    try:
        with Path(path).open(encoding="utf-8", errors="surrogateescape", newline="") as stream:
            reader = csv.reader(stream, strict=True)
            if next(reader, None) != list(columns):
                raise UserError(f"{path}: the header must be {','.join(columns)}; {remedy}")
            for row in reader:
                if len(row) != len(columns) or row[split] not in SPLITS:
                    raise UserError(f"{path}, line {reader.line_num}: unexpected {row}; {remedy}")
                # Memory then holds each name once, and not once for each of a million images.
                names = intern(row[name]), intern(row[split])
                yield LabelledImage(row[place], int(row[label]), *names)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; {remedy}") from None
    except (ValueError, csv.Error) as error:
        raise UserError(f"{path}, line {reader.line_num}: {error}; {remedy}") from None
