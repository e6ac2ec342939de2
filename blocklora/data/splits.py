"""Reading the files and folders that assign images to labels and splits."""

import json
import lzma
import os
from collections.abc import Iterator
from pathlib import Path

from blocklora.csvfiles import read_rows
from blocklora.data.manifest import SPLITS, LabelledImage, check_relative
from blocklora.errors import UserError

# The suffixes of images in torchvision's ImageFolder (torchvision/datasets/folder.py). The few-shot
# draws depend on the exact list of files.
IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp",
)  # fmt: skip


def read_split_file(path: str | Path) -> list[LabelledImage]:
    """Return the images in a `split_zhou_*.json` file (or `.json.xz`): training, validation, test.

    The file lists (path, label, class name) for each split.

    Raises:
        UserError: The file is missing or of another form, or a path leads out of the image folder.
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
            f"{path}: no such split file; fetch the published one, because another split has "
            "another test set and other few-shot lists"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, lzma.LZMAError) as error:
        raise UserError(
            f"{path}: not a readable split file ({error}); fetch the published file again"
        ) from None


def read_aircraft_lists(folder: str | Path) -> list[LabelledImage]:
    """Return the images in the official lists of FGVC-Aircraft, which are in `folder`.

    Classes are variants. The label is the line number of the variant in `variants.txt`, counted
    from 0, and the class name is the text after the image id (MaxZanella/CLIP-LoRA@358f0d7
    `datasets/fgvc.py`).

    Raises:
        UserError: A list is missing or unreadable, names an unknown variant, or has an image id
            that leads out of the folder.
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
    """Yield the images in `<root>/<split>/<class name>/`, in the order of ImageFolder.

    The splits are `train`, `val` (optional) and `test`. Labels number the sorted class folders of
    `train`.

    Raises:
        UserError: `train` or `test` is missing, or a class is empty or not in `train`.
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
                raise UserError(f"{folder / name}: this class has no folder in {root / 'train'}")
            for file in scan_images(folder / name):
                yield LabelledImage(f"{split}/{name}/{file}", labels[name], name, split)


def class_folders(folder: str | Path) -> list[str]:
    """Return the sorted names of the class folders in `folder`, without hidden ones.

    Raises:
        UserError: The folder is missing or has no class folders.
    """
    try:
        with os.scandir(folder) as entries:
            names = sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
    except OSError as error:
        raise UserError(
            f"{folder}: {error.strerror}; images are expected in <split>/<class name>/ below it"
        ) from None
    if not names:
        raise UserError(f"{folder}: there are no class folders in it")
    return names


def scan_images(folder: str | Path) -> list[str]:
    """Return the POSIX paths of the images below `folder`, in the order of ImageFolder.

    Raises:
        UserError: There are no images.
    """
    folder = Path(folder)
    found = []
    for place, _, files in sorted(os.walk(folder, followlinks=True)):
        inner = os.path.relpath(place, folder)
        prefix = "" if inner == "." else f"{inner}/"
        found += [prefix + f for f in sorted(files) if f.lower().endswith(IMAGE_SUFFIXES)]
    if not found:
        raise UserError(
            f"{folder}: this class has no images (with one of {', '.join(IMAGE_SUFFIXES)})"
        )
    return found


def read_csv_split(path: str | Path) -> list[LabelledImage]:
    """Return the images in a user's CSV file: training, validation, test.

    The columns are `path`, `label`, `split` and optionally `classname`. With a `classname` column,
    labels are integers. Without one, a label is itself the class name, and the sorted class names
    are numbered from 0.

    Raises:
        UserError: The file or a column is missing, or a row has a fault.
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
            f"{path}: cannot read this official list of the dataset ({error}); fetch it again"
        ) from None
