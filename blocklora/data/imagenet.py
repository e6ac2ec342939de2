"""Listing the images of ImageNet, whose class folders are named by WordNet ids.

The validation images may also lie in one flat folder. The development kit then gives their classes.
"""

import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

from blocklora.data.manifest import LabelledImage
from blocklora.data.splits import IMAGE_SUFFIXES, class_folders, scan_images
from blocklora.errors import UserError

DEVKIT = "ILSVRC2012_devkit_t12"
_META = f"{DEVKIT}/data/meta.mat"
_TRUTH = f"{DEVKIT}/data/ILSVRC2012_validation_ground_truth.txt"


def read_classes(path: Path) -> dict[str, str]:
    """Return the class names by WordNet id, in label order.

    Each line of the file has an id and a class name; lines that begin with `#` are comments.
    """
    lines = path.read_text(encoding="utf-8").splitlines()
    return dict(line.split(" ", 1) for line in lines if not line.startswith("#"))


def scan_imagenet(
    root: Path, classes: dict[str, str], devkit: Path | None
) -> Iterator[LabelledImage]:
    """Yield the training images in `train/` and, as test images, the images in `val/`.

    Both come in the order of torchvision's ImageFolder. If `val/` is flat, the ground truth in the
    devkit gives the classes of its images, which come in the order that they would have in class
    folders. The devkit is a folder or a .tar.gz file.

    Raises:
        UserError: The class folders are not those of `classes`, one is empty, the devkit is missing
            or damaged, or a flat validation image has no ground truth.
    """
    yield from _scan_folders(root, "train", classes, "train")
    if not is_flat(root / "val"):
        yield from _scan_folders(root, "val", classes, "test")
        return
    if devkit is None:
        raise UserError(f"{root / 'val'}: a flat validation folder needs the devkit ({DEVKIT})")
    labels = {wnid: label for label, wnid in enumerate(classes)}
    truth = _read_truth(devkit)
    rows = []
    for name in scan_images(root / "val"):
        number = name.rpartition(".")[0].rpartition("_")[2]
        if not number.isdecimal() or not 0 < int(number) <= len(truth):
            raise UserError(
                f"{root / 'val' / name}: not a validation image that the devkit knows "
                f"(ILSVRC2012_val_00000001.JPEG to {len(truth):08d}); remove it"
            )
        wnid = truth[int(number) - 1]
        rows.append(LabelledImage(f"val/{name}", labels[wnid], classes[wnid], "test"))
    yield from sorted(rows, key=lambda image: (image.label, image.path))


def is_flat(folder: Path) -> bool:
    """Return whether images lie directly in `folder`."""
    with os.scandir(folder) as entries:
        return any(e.name.lower().endswith(IMAGE_SUFFIXES) and e.is_file() for e in entries)


def _scan_folders(
    root: Path, folder: str, classes: dict[str, str], split: str
) -> Iterator[LabelledImage]:
    found = class_folders(root / folder)
    if found != list(classes):
        odd = sorted(set(found) ^ classes.keys())
        raise UserError(
            f"{root / folder}: {len(found)} class folders instead of {len(classes)}; missing or "
            f"not of this dataset: {', '.join(odd[:5])}. Labels number the sorted folders, so "
            "add or remove them"
        )
    for label, (wnid, name) in enumerate(classes.items()):
        for file in scan_images(root / folder / wnid):
            yield LabelledImage(f"{folder}/{wnid}/{file}", label, name, split)


def _read_truth(devkit: Path) -> list[str]:
    """Return the WordNet id of each validation image, in the order of the images' numbers.

    Raises:
        UserError: The devkit cannot be read.
    """
    import scipy.io

    try:
        synsets = scipy.io.loadmat(io.BytesIO(_read(devkit, _META)), squeeze_me=True)["synsets"]
        wnids = dict(zip(synsets["ILSVRC2012_ID"].tolist(), synsets["WNID"].tolist(), strict=True))
        return [wnids[int(number)] for number in _read(devkit, _TRUTH).split()]
    except (OSError, KeyError, ValueError, TypeError, tarfile.TarError) as error:
        raise UserError(
            f"{devkit}: not a readable devkit ({type(error).__name__}: {error}); download "
            f"{DEVKIT}.tar.gz again"
        ) from None


def _read(devkit: Path, member: str) -> bytes:
    if devkit.is_dir():
        return (devkit.parent / member).read_bytes()
    with tarfile.open(devkit) as archive, archive.extractfile(member) as stream:
        return stream.read()
