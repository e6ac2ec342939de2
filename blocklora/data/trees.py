"""Image folders and split files that are already there; nothing in them is written to."""

import hashlib
import logging
import lzma
from pathlib import Path

from blocklora.data.download import Downloader, check_file
from blocklora.data.imagenet import DEVKIT, is_flat
from blocklora.data.registry import Dataset, RemoteFile, Tree, readable
from blocklora.errors import UserError
from blocklora.files import file_digest

logger = logging.getLogger(__name__)

ARCHIVES = "archives"  # below data_root: files the user put there; read, never changed
SPLITS = "splits"  # below data_root: split files that were downloaded


def find_tree(dataset: Dataset, data_root: Path) -> Tree | None:
    """Return the first known layout whose folders are below `data_root`."""
    for tree in dataset.trees:
        if all((data_root / tree.folder / need).exists() for need in tree.needs):
            return tree
    return None


def find_split(
    dataset: Dataset, folder: Path, data_root: Path, downloader: Downloader | None
) -> Path | None:
    """Return the file that assigns the images in `folder` to labels and splits.

    That is the published split file, wherever a true copy is: in the dataset's folder, in the
    registry, below `data_root`, or, given a `downloader`, at its address. A file of that name
    with other content is left alone and not used. For ImageNet it is the devkit if the
    validation folder is flat. None where folders or lists inside the archive say it all.

    Raises:
        UserError: there is no true copy, or no devkit.
    """
    if dataset.layout == "imagenet":
        return _find_devkit(folder, data_root)
    if dataset.split_file is None:
        return None
    file = dataset.split_file
    packaged = dataset.packaged_split()
    own = [folder / file.name, data_root / ARCHIVES / file.name, data_root / SPLITS / file.name]
    for path in own:
        if path.exists():
            try:
                check_file(path, file)
            except UserError as error:
                logger.warning(
                    "%s; not the published split, possibly one that CoOp made anew: not used", error
                )
            else:
                return path
    if packaged.exists():
        _check_packaged(packaged, file)
        return packaged
    if downloader is None:
        raise UserError(
            f"{dataset.display_name}: {file.name} is missing; a split is never regenerated, since "
            f"another one gives other results. Put the published file into {data_root / ARCHIVES} "
            f"(from {' or '.join(map(readable, file.addresses))}) and run again"
        )
    downloader.fetch(file, own[-1])
    return own[-1]


def describe(path: Path, verified: str | None = None) -> dict:
    """Return name, sha256 and bytes of a file, as recorded in `source.json`.

    `verified` is a checksum the file was found to have; a SHA-256 is not computed twice.
    """
    algorithm, _, value = (verified or "").partition(":")
    sha256 = value if algorithm == "sha256" else file_digest(path)
    return {"name": path.name, "sha256": sha256, "bytes": path.stat().st_size}


def _check_packaged(path: Path, file: RemoteFile) -> None:
    algorithm, expected = (file.checksum or ":").split(":")
    content = lzma.decompress(path.read_bytes())
    if algorithm != "sha256" or hashlib.sha256(content).hexdigest() != expected:
        raise UserError(f"{path}: not the published {file.name}; install the package again")


def _find_devkit(folder: Path, data_root: Path) -> Path | None:
    validation = next(v for v in (folder / "images" / "val", folder / "val") if v.is_dir())
    if not is_flat(validation):
        return None
    for place in (folder, validation.parent, data_root / ARCHIVES):
        for devkit in (place / DEVKIT, place / f"{DEVKIT}.tar.gz"):
            if devkit.exists():
                return devkit
    raise UserError(
        f"{validation}: the images lie flat, so {DEVKIT}.tar.gz is needed to tell their "
        f"classes: get it from https://image-net.org and put it into {data_root / ARCHIVES}"
    )
