"""The two CSV files that list images: the manifest of a dataset and a shots list.

A manifest has the columns `path,label,classname,split` with one row per image: the training
images first, then validation, then test, each in the order of the split. That order matters,
because few-shot sampling visits classes in order of first appearance. A shots list has the
columns `part,path,label,classname`. Paths are POSIX paths below the `image_root` of
`source.json`; names that are not UTF-8 survive as surrogate escapes.
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
    """One image of a dataset; `split` is `train`, `val` or `test`."""

    path: str
    label: int
    classname: str
    split: str


MANIFEST_COLUMNS = LabelledImage._fields


def write_manifest(path: str | Path, images: Iterable[LabelledImage]) -> None:
    """Write a manifest, streaming over `images`."""
    _write_csv(path, MANIFEST_COLUMNS, images)


def write_shots(path: str | Path, images: Iterable[LabelledImage]) -> None:
    """Write a shots list; the split of an image is its part."""
    _write_csv(path, SHOTS_COLUMNS, ((i.split, i.path, i.label, i.classname) for i in images))


def iterate_manifest(path: str | Path) -> Iterator[LabelledImage]:
    """Yield the images of a manifest without holding them all.

    Raises:
        UserError: the file is missing, has other columns or holds a malformed row.
    """
    return _iterate_csv(path, MANIFEST_COLUMNS, "make-manifest")


def read_manifest(path: str | Path) -> list[LabelledImage]:
    """Return the images of a manifest; same errors as `iterate_manifest`."""
    return list(iterate_manifest(path))


def read_shots(path: str | Path, part: str | None = None) -> list[LabelledImage]:
    """Return the images of a shots list in drawing order, optionally of one part alone."""
    images = _iterate_csv(path, SHOTS_COLUMNS, "shots")
    return [image for image in images if part in (None, image.split)]


def classnames(images: Iterable[LabelledImage]) -> list[str]:
    """Return the class names by label.

    Raises:
        UserError: labels are not 0, 1, 2, … or one label has two names.
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
        UserError: it is empty, absolute, or climbs out by `..`.
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
        # Before Python 3.13 the writer leaves a lone carriage return unquoted, which the reader
        # then takes for the end of a row.
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
                # A name is stored once, not once for each of a million images.
                names = intern(row[name]), intern(row[split])
                yield LabelledImage(row[place], int(row[label]), *names)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; {remedy}") from None
    except (ValueError, csv.Error) as error:
        raise UserError(f"{path}, line {reader.line_num}: {error}; {remedy}") from None
