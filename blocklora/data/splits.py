"""Readers of everything that assigns the images of a dataset to labels and splits."""

import json
import lzma
import os
from collections.abc import Iterator
from pathlib import Path

from blocklora.csvfiles import read_rows
from blocklora.data.manifest import SPLITS, LabelledImage, check_relative
from blocklora.errors import UserError

# What torchvision's ImageFolder takes for an image (torchvision/datasets/folder.py): the few-shot
# draws depend on the exact file list.
IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp",
)  # fmt: skip


def read_split_file(path: str | Path) -> list[LabelledImage]:
    """Read a `split_zhou_*.json` file (or `.json.xz`): lists of (path, label, class name).

    Raises:
        UserError: the file is missing or not of that form.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
        lists = json.loads(lzma.decompress(content) if path.suffix == ".xz" else content)
        return [
            LabelledImage(check_relative(place, path), int(label), str(name), split)
            for split in SPLITS
            for place, label, name in lists[split]
        ]
    except FileNotFoundError:
        raise UserError(
            f"{path}: no such split file; a split is never regenerated, since another split "
            "gives other few-shot lists and another test set: fetch the published file"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, lzma.LZMAError) as error:
        raise UserError(
            f"{path}: not a readable split file ({error}); fetch the published file again"
        ) from None


def read_aircraft_lists(folder: str | Path) -> list[LabelledImage]:
    """Read the official variant-level lists of FGVC-Aircraft in `folder`, beside `images/`.

    The label is the line number in `variants.txt`, the class name the text after the image id
    (MaxZanella/CLIP-LoRA@358f0d7 `datasets/fgvc.py`).

    Raises:
        UserError: a list is missing or names an unknown variant.
    """
    folder = Path(folder)
    labels = {name: label for label, name in enumerate(_lines(folder / "variants.txt"))}
    found = []
    for split in SPLITS:
        path = folder / f"images_variant_{split}.txt"
        for line in _lines(path):
            number, _, variant = line.partition(" ")
            if variant not in labels:
                raise UserError(f"{path}: {variant!r} is not in variants.txt; fetch it again")
            place = check_relative(f"images/{number}.jpg", path)
            found.append(LabelledImage(place, labels[variant], variant, split))
    return found


def scan_image_folder(root: str | Path) -> Iterator[LabelledImage]:
    """Scan `<root>/<split>/<class name>/**`, in the order of torchvision's ImageFolder.

    Splits are `train`, `val` (may be absent) and `test`. Labels number the sorted class folders
    of `train`.

    Raises:
        UserError: `train` or `test` is missing, a class is empty or only in `val` or `test`.
    """
    root = Path(root)
    names = class_folders(root / "train")
    labels = {name: label for label, name in enumerate(names)}
    for split in SPLITS:
        folder = root / split
        if split == "val" and not folder.exists():
            continue
        for name in class_folders(folder):
            if name not in labels:
                raise UserError(f"{folder / name}: a class without a folder in {root / 'train'}")
            for file in scan_images(folder / name):
                yield LabelledImage(f"{split}/{name}/{file}", labels[name], name, split)


def class_folders(folder: str | Path) -> list[str]:
    """Return the sorted names of the class folders below `folder`; hidden ones are no classes."""
    try:
        with os.scandir(folder) as entries:
            names = sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
    except OSError as error:
        raise UserError(
            f"{folder}: {error.strerror}; images are expected in <split>/<class name>/ below it"
        ) from None
    if not names:
        raise UserError(f"{folder}: no class folders in it")
    return names


def scan_images(folder: str | Path) -> list[str]:
    """Return the POSIX paths of the images below `folder`, in ImageFolder's order.

    Raises:
        UserError: there is none.
    """
    folder = Path(folder)
    found = []
    for place, _, files in sorted(os.walk(folder, followlinks=True)):
        inner = os.path.relpath(place, folder)
        prefix = "" if inner == "." else f"{inner}/"
        found += [prefix + f for f in sorted(files) if f.lower().endswith(IMAGE_SUFFIXES)]
    if not found:
        raise UserError(f"{folder}: an empty class: no image in it ({', '.join(IMAGE_SUFFIXES)})")
    return found


def read_csv_split(path: str | Path) -> list[LabelledImage]:
    """Read an own dataset's CSV file with the columns `path,label,split` and maybe `classname`.

    A label is an integer with the class name beside it, or, without a `classname` column, the
    class name itself; names are then numbered in sorted order.

    Raises:
        UserError: a column is missing or a row does not make sense.
    """
    rows = read_rows(path, ("path", "label", "split"), "correct it")
    numbers = {}
    if not any("classname" in row for row in rows):
        numbers = {name: str(n) for n, name in enumerate(sorted({r["label"] for r in rows}))}
    images = []
    for line, row in enumerate(rows, start=2):
        where = f"{path}, row {line}"
        if row["split"] not in SPLITS:
            raise UserError(f"{where}: split is {row['split']!r}; allowed are {', '.join(SPLITS)}")
        label = numbers.get(row["label"], row["label"])
        if not label.isdecimal():
            raise UserError(f"{where}: label {label!r} must be an integer beside a classname")
        name = row.get("classname") or row["label"]
        images.append(
            LabelledImage(check_relative(row["path"], where), int(label), name, row["split"])
        )
    return sorted(images, key=lambda image: SPLITS.index(image.split))


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path}: an official list of the dataset cannot be read ({error}); fetch it again"
        ) from None
