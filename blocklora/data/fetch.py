"""`fetch-dataset`: where the images of a dataset are, downloaded and unpacked if they are nowhere.

Archives are found or downloaded, verified, unpacked and counted; then the tree takes its name.
"""

import logging
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from blocklora.data.download import WORK, Downloader, check_file, locked, require_space
from blocklora.data.layouts import list_images
from blocklora.data.manifest import SPLITS
from blocklora.data.registry import Archive, Dataset
from blocklora.data.source import Source
from blocklora.data.trees import ARCHIVES, describe, find_split, find_tree
from blocklora.data.unpack import unpack
from blocklora.errors import UserError
from blocklora.files import read_json, write_json

logger = logging.getLogger(__name__)

MARKER = ".blocklora.json"  # in a dataset's folder: the archives it was made from


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
                _obtain_tree(dataset, data_root, downloader)
    tree = find_tree(dataset, data_root)
    folder = data_root / tree.folder
    split = find_split(dataset, folder, data_root, downloader)
    marker = folder / MARKER
    archives = read_json(marker)["files"] if marker.exists() else []
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


def _obtain_tree(dataset: Dataset, data_root: Path, downloader: Downloader | None) -> None:
    """Make the first layout of `dataset.trees` below `data_root`.

    Each alternative of `dataset.downloads` is tried in order, first those whose archives the
    user has put into `archives/` or the dataset's folder. Without a downloader only those count.

    Raises:
        UserError: no alternative worked; the message says why each did not and what to do.
    """
    places = [data_root / ARCHIVES, *(data_root / tree.folder for tree in dataset.trees)]
    cache = data_root / WORK / dataset.name
    reasons = []

    def has_to_be_downloaded(archives: Sequence[Archive]) -> bool:
        return not all(_local(archive, places) for archive in archives)

    for archives in sorted(dataset.downloads, key=has_to_be_downloaded):
        try:
            files = _find_archives(archives, places, cache, downloader)
            _make_tree(dataset, data_root, files, cache, downloader)
        except UserError as error:
            reasons.append(str(error))
        else:
            shutil.rmtree(cache)
            return
    raise UserError(_what_to_do(dataset, data_root, reasons))


def _local(archive: Archive, places: Sequence[Path]) -> Path | None:
    return next((p / archive.name for p in places if (p / archive.name).is_file()), None)


def _find_archives(
    archives: Sequence[Archive],
    places: Sequence[Path],
    cache: Path,
    downloader: Downloader | None,
) -> dict[Path, Archive]:
    """Return the archives of one alternative, verified, by where they are."""
    found = {}
    for archive in archives:
        path = _local(archive, [*places, cache])
        if path is not None and _is_sound(path, archive, replaceable=downloader is not None):
            found[path] = archive
    absent = [archive for archive in archives if archive not in found.values()]
    size = sum(archive.bytes or 0 for archive in archives)
    require_space(cache.parent, sum(a.bytes or 0 for a in absent) + size, archives[0].name)
    for archive in absent:
        if downloader is None or not archive.addresses:
            raise UserError(f"{archive.name}: not in {places[0]}")
        downloader.fetch(archive, cache / archive.name)
        found[cache / archive.name] = archive
    return found


def _is_sound(path: Path, archive: Archive, replaceable: bool) -> bool:
    try:
        check_file(path, archive)
    except UserError as error:
        if not (replaceable and archive.addresses):
            raise
        logger.warning("%s; not used", error)
        return False
    return True


def _make_tree(
    dataset: Dataset,
    data_root: Path,
    files: Mapping[Path, Archive],
    cache: Path,
    downloader: Downloader | None,
) -> None:
    tree = dataset.trees[0]
    unpacked = cache / "unpacked"
    shutil.rmtree(unpacked, ignore_errors=True)
    try:
        for path, archive in files.items():
            unpack(path, unpacked, archive.unpack)
            if not archive.checksum:
                logger.warning(
                    "%s: no checksum has been published for this archive; its files are held "
                    "against the split",
                    archive.name,
                )
        split = find_split(dataset, unpacked, data_root, downloader)
        image_root = unpacked / tree.images
        source = Source(dataset.name, str(image_root), split and str(split), "downloaded")
        _check_complete(dataset, source)
    except OSError as error:
        raise UserError(f"{unpacked}: cannot be written: {error.strerror}") from None
    except UserError:
        # What came without a checksum may be the culprit and must come anew.
        for path, archive in files.items():
            if path.parent == cache and not archive.checksum:
                path.unlink()
        raise
    record = [describe(path, archive.checksum) for path, archive in files.items()]
    write_json(unpacked / MARKER, {"files": record})
    folder = data_root / tree.folder
    try:
        _move_into_place(unpacked, folder)
    except OSError as error:
        raise UserError(
            f"{folder}: {unpacked} cannot be renamed to it ({error.strerror}); both have to be on "
            "one file system"
        ) from None


def _check_complete(dataset: Dataset, source: Source) -> None:
    images = list(list_images(source, {dataset.name: dataset}))
    counts = Counter(image.split for image in images)
    found = {split: counts[split] for split in SPLITS}
    if found != dataset.images:
        raise UserError(f"{dataset.name}: {found} images unpacked, expected {dataset.images}")
    root = Path(source.image_root)
    for image in images:
        if not (root / image.path).exists():
            raise UserError(f"{dataset.name}: {image.path} of the split is not in the archive")


def _move_into_place(unpacked: Path, folder: Path) -> None:
    if not folder.exists():
        unpacked.rename(folder)
        return
    children = sorted(unpacked.iterdir())
    for child in children:
        if (folder / child.name).is_dir():
            raise UserError(
                f"{folder / child.name}: an incomplete tree is in the way; complete it or move it"
            )
    for child in children:
        if not (folder / child.name).exists():
            child.rename(folder / child.name)


def _what_to_do(dataset: Dataset, data_root: Path, reasons: Sequence[str]) -> str:
    names = " or ".join(" + ".join(a.name for a in group) for group in dataset.downloads)
    trees = " or ".join(
        f"{data_root / tree.folder} with {', '.join(tree.needs)}" for tree in dataset.trees
    )
    text = f"{dataset.display_name} is neither below {data_root} nor to be had:\n"
    text += "".join(f"- {reason}\n" for reason in reasons)
    if dataset.gated:
        text += f"{dataset.gated}\n"
    return text + (
        f"Put {names} into {data_root / ARCHIVES}, or the unpacked images into {trees}, "
        "and run again."
    )
