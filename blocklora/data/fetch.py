"""`fetch-dataset`: find, download or draw the images of one dataset of a study."""

import logging
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from blocklora.data.download import Downloader, locked
from blocklora.data.obtain import archives_of, obtain_tree
from blocklora.data.registry import Dataset
from blocklora.data.source import Source
from blocklora.data.trees import describe, find_split, find_tree
from blocklora.errors import UserError
from blocklora.files import json_digest

logger = logging.getLogger(__name__)


def fetch_published(dataset: Dataset, data_root: Path, downloader: Downloader | None) -> Source:
    """Return where a dataset of the registry is below `data_root`, fetching it if it is nowhere.

    Without a downloader nothing is asked of the network.

    Raises:
        UserError: the images or the split file are missing and cannot be had.
    """
    data_root = data_root.absolute()
    if find_tree(dataset, data_root) is None:
        with locked(data_root, dataset.name):
            if find_tree(dataset, data_root) is None:  # another process may have made it
                obtain_tree(dataset, data_root, downloader)
    tree = find_tree(dataset, data_root)
    folder = data_root / tree.folder
    split = find_split(dataset, folder, data_root, downloader)
    archives = archives_of(folder)
    logger.info("%s: %s layout in %s", dataset.display_name, tree.convention, folder)
    return Source(
        dataset=dataset.name,
        image_root=str(folder / tree.images),
        split_file=split and str(split),
        origin="downloaded" if archives else "existing",
        files=(*archives, *([describe(split)] if split and split.is_file() else ())),
    )


def use_own(name: str, images: Path, csv: Path | None) -> Source:
    """Return where a dataset of the user's is.

    Raises:
        UserError: the folder or the CSV file is missing.
    """
    if not images.is_dir():
        raise UserError(f"{images}: no such folder; own_datasets.{name}.images must name one")
    if csv is not None and not csv.is_file():
        raise UserError(f"{csv}: no such file; own_datasets.{name}.csv must name one")
    return Source(
        dataset=name,
        image_root=str(images.absolute()),
        split_file=csv and str(csv.absolute()),
        origin="user",
        files=(describe(csv),) if csv else (),
    )


def draw(
    name: str,
    data_root: Path,
    settings: Mapping[str, Any] | None,
    painter: Callable[[str, Path, Mapping[str, Any]], None],
) -> Source:
    """Draw a dataset of the miniature with `painter` and return where it is.

    The folder is named by the settings, so that studies that draw differently can share a
    `data_root`. It is drawn anew at every call, since the drawing code may have changed.

    Raises:
        UserError: the study has no `miniature` settings.
    """
    if settings is None:
        raise UserError(f"{name} is drawn, so the study needs `miniature` settings")
    folder = data_root.absolute() / "drawn" / f"{name}-{json_digest(settings)[:12]}"
    with locked(data_root, folder.name):
        unfinished = folder.with_name(f".{folder.name}")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        painter(name, unfinished, settings)
        shutil.rmtree(folder, ignore_errors=True)
        unfinished.rename(folder)
    return Source(name, str(folder), None, "drawn")
