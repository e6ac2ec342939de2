"""Finding the images of a dataset, after downloading and unpacking them if they are missing.

Archives are found or downloaded, verified and unpacked, and their images are counted. Only then
does the folder of the dataset get its name. Image folders, archives and split files that the user
has put below the data root are never changed.
"""

import hashlib
import logging
import lzma
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from blocklora.data.download import WORK, Downloader, check_file, locked, require_space
from blocklora.data.imagenet import DEVKIT, is_flat
from blocklora.data.layouts import list_images
from blocklora.data.manifest import SPLITS
from blocklora.data.registry import Archive, Dataset, Download, RemoteFile, Tree
from blocklora.data.source import Source
from blocklora.data.unpack import unpack
from blocklora.errors import UserError
from blocklora.files import file_digest, read_json, write_json

logger = logging.getLogger(__name__)

MARKER = ".blocklora.json"  # file in a dataset's folder that lists the archives unpacked into it


def fetch_published(dataset: Dataset, data_root: Path, downloader: Downloader | None) -> Source:
    """Return the place of a dataset below `data_root`, after downloading it if it is missing.

    Without a downloader, the network is not used.

    Raises:
        UserError: The images or the split file are missing and cannot be obtained, or the data root
            cannot be written to.
    """
    fetcher = _Fetcher(dataset, data_root.absolute(), downloader)
    tree = fetcher.find_tree()
    if tree is None:
        with locked(fetcher.data_root, dataset.name):
            # Another process may have made the tree in the meantime.
            tree = fetcher.find_tree() or fetcher.make_first_tree()
    folder = fetcher.data_root / tree.folder
    split = fetcher.find_split(folder)
    marker = folder / MARKER
    archives = read_json(marker)["files"] if marker.exists() else []
    logger.info("%s: found in %s, as %s lays it out", dataset.display_name, folder, tree.convention)
    return Source(
        dataset=dataset.name,
        image_root=str(folder / tree.images),
        split_file=split and str(split),
        origin="downloaded" if archives else "existing",
        files=(*archives, *([_describe(split)] if split and split.is_file() else ())),
    )


def use_own(name: str, images: Path, csv: Path | None) -> Source:
    """Return the place of a user's own dataset.

    Raises:
        UserError: The folder or the CSV file is missing.
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
        files=(_describe(csv),) if csv else (),
    )


@dataclass(frozen=True)
class _Fetcher:
    """Finds or makes a dataset below `data_root`; without a downloader it stays offline."""

    dataset: Dataset
    data_root: Path
    downloader: Downloader | None

    @property
    def archives(self) -> Path:
        """The folder for files from the user, which are read but never changed."""
        return self.data_root / "archives"

    @property
    def cache(self) -> Path:
        """The folder for downloaded and unpacked files until the dataset is complete."""
        return self.data_root / WORK / self.dataset.name

    def find_tree(self) -> Tree | None:
        """Return the first known layout whose folders exist below `data_root`."""
        for tree in self.dataset.trees:
            if all((self.data_root / tree.folder / need).exists() for need in tree.needs):
                return tree
        return None

    def find_split(self, folder: Path) -> Path | None:
        """Return the file that assigns the images in `folder` to labels and splits.

        For most datasets it is an exact copy of the published split file, which is looked for in
        `folder`, in `archives` and `splits` below `data_root`, in the registry and on the network.
        A file of the same name with other content is not used. For ImageNet with a flat validation
        folder it is the devkit. The result is None if folders or lists beside the images give the
        labels and splits.

        Raises:
            UserError: There is no exact copy, or no devkit.
        """
        if self.dataset.layout == "imagenet":
            return self._find_devkit(folder)
        file = self.dataset.split_file
        if file is None:
            return None
        downloaded = self.data_root / "splits" / file.name
        remark = "not used, because it is not the published split (CoOp may have made it anew)"
        for path in (folder / file.name, self.archives / file.name, downloaded):
            if path.exists() and _is_sound(path, file, remark):
                return path
        packaged = self.dataset.packaged_split()
        if packaged.exists():
            content = lzma.decompress(packaged.read_bytes())
            if file.checksum != f"sha256:{hashlib.sha256(content).hexdigest()}":
                raise UserError(
                    f"{packaged}: not the published {file.name}; install the package again"
                )
            return packaged
        if self.downloader is None:
            links = " or ".join(address.link for address in file.addresses)
            raise UserError(
                f"{self.dataset.display_name}: {file.name} is missing. It is never regenerated, "
                "because another split gives other results. Put the published file into "
                f"{self.archives} (from {links}) and run again"
            )
        self.downloader.fetch(file, downloaded)
        return downloaded

    def _find_devkit(self, folder: Path) -> Path | None:
        validation = next(v for v in (folder / "images" / "val", folder / "val") if v.is_dir())
        if not is_flat(validation):
            return None
        for place in (folder, validation.parent, self.archives):
            for devkit in (place / DEVKIT, place / f"{DEVKIT}.tar.gz"):
                if devkit.exists():
                    return devkit
        raise UserError(
            f"{validation}: the images are not in class folders, so {DEVKIT}.tar.gz is needed to "
            f"tell their classes: get it from https://image-net.org and put it into {self.archives}"
        )

    def make_first_tree(self) -> Tree:
        """Make a tree in the first layout of the dataset from archives, and return the layout.

        Alternative downloads are tried in order, beginning with those whose archives the user has
        put into `archives/` or into the dataset's folder. Offline, only those can work.

        Raises:
            UserError: No alternative worked. The message lists the reasons and a remedy.
        """
        places = [self.archives, *(self.data_root / tree.folder for tree in self.dataset.trees)]
        reasons = []

        def has_to_be_downloaded(download: Download) -> bool:
            return not all(_local(archive, places) for archive in download.archives)

        for download in sorted(self.dataset.downloads, key=has_to_be_downloaded):
            try:
                self._make_tree(self._find_archives(download.archives, places))
            except UserError as error:
                reasons.append(str(error))
            else:
                shutil.rmtree(self.cache)
                return self.dataset.trees[0]
        raise UserError(self._what_to_do(reasons))

    def _find_archives(
        self, archives: Sequence[Archive], places: Sequence[Path]
    ) -> dict[Path, Archive]:
        """Return the archives of one alternative by their paths, after verifying them.

        Raises:
            UserError: An archive is missing or damaged, or there is no room to download and unpack
                the archives.
        """
        found = {}
        for archive in archives:
            path = _local(archive, [*places, self.cache])
            if path is None:
                continue
            if not (self.downloader and archive.addresses):
                check_file(path, archive)  # it has to be right, because no other can be had
                found[path] = archive
            elif _is_sound(path, archive, "not used"):
                found[path] = archive
        absent = [archive for archive in archives if archive not in found.values()]
        size = sum(archive.bytes or 0 for archive in [*archives, *absent])
        require_space(self.cache.parent, size, archives[0].name)
        for archive in absent:
            if self.downloader is None or not archive.addresses:
                raise UserError(f"{archive.name}: not in {places[0]}")
            self.downloader.fetch(archive, self.cache / archive.name)
            found[self.cache / archive.name] = archive
        return found

    def _make_tree(self, files: Mapping[Path, Archive]) -> None:
        tree = self.dataset.trees[0]
        unpacked = self.cache / "unpacked"
        shutil.rmtree(unpacked, ignore_errors=True)
        try:
            for path, archive in files.items():
                unpack(path, unpacked, archive.unpack)
                if not archive.checksum:
                    logger.warning(
                        "%s: no checksum has been published for this archive; only its list of "
                        "files is compared with the split",
                        archive.name,
                    )
            self._check_complete(unpacked / tree.images, self.find_split(unpacked))
        except OSError as error:
            raise UserError(f"{unpacked}: cannot be written: {error.strerror}") from None
        except UserError:
            # An archive without a checksum may be damaged, so the next call has to download it
            # again.
            for path, archive in files.items():
                if path.parent == self.cache and not archive.checksum:
                    path.unlink()
            raise
        record = [_describe(path, archive.checksum) for path, archive in files.items()]
        write_json(unpacked / MARKER, {"files": record})
        folder = self.data_root / tree.folder
        try:
            _move_into_place(unpacked, folder)
        except OSError as error:
            raise UserError(
                f"{folder}: {unpacked} cannot be moved there ({error.strerror}); both have to be "
                "writable and on one file system"
            ) from None

    def _check_complete(self, root: Path, split: Path | None) -> None:
        name = self.dataset.name
        source = Source(name, str(root), split and str(split), "downloaded")
        images = list(list_images(source, {name: self.dataset}))
        counts = Counter(image.split for image in images)
        found = {split: counts[split] for split in SPLITS}
        if found != self.dataset.images:
            raise UserError(
                f"{name}: {found} images were unpacked instead of {self.dataset.images}"
            )
        for image in images:
            if not (root / image.path).exists():
                raise UserError(f"{name}: {image.path} of the split is not in the archive")

    def _what_to_do(self, reasons: Sequence[str]) -> str:
        names = " or ".join(
            " + ".join(archive.name for archive in download.archives)
            for download in self.dataset.downloads
        )
        trees = " or ".join(
            f"{self.data_root / tree.folder} with {', '.join(tree.needs)}"
            for tree in self.dataset.trees
        )
        lines = [
            f"{self.dataset.display_name} is not below {self.data_root} and cannot be obtained:",
            *(f"- {reason}" for reason in reasons),
            *([self.dataset.gated] if self.dataset.gated else []),
            f"Put {names} into {self.archives}, or the unpacked images into {trees}, "
            "and run again.",
        ]
        return "\n".join(lines)


def _local(archive: Archive, places: Sequence[Path]) -> Path | None:
    return next((p / archive.name for p in places if (p / archive.name).is_file()), None)


def _is_sound(path: Path, file: RemoteFile, remark: str) -> bool:
    """Return whether a file is the expected one; if not, log the reason and the remark."""
    try:
        check_file(path, file)
    except UserError as error:
        logger.warning("%s; %s", error, remark)
        return False
    return True


def _describe(path: Path, verified: str | None = None) -> dict:
    """Return name, sha256 and bytes of a file, as recorded in `source.json`.

    The SHA-256 is taken from the checksum `verified` if it is there, and computed otherwise.
    """
    algorithm, _, value = (verified or "").partition(":")
    sha256 = value if algorithm == "sha256" else file_digest(path)
    return {"name": path.name, "sha256": sha256, "bytes": path.stat().st_size}


def _move_into_place(unpacked: Path, folder: Path) -> None:
    """Rename `unpacked` to `folder`; if that exists, move only the children that it lacks.

    Raises:
        UserError: A folder of a child's name exists.
        OSError: A file or folder cannot be renamed.
    """
    if not folder.exists():
        unpacked.rename(folder)
        return
    children = sorted(unpacked.iterdir())
    for child in children:
        if (folder / child.name).is_dir():
            raise UserError(
                f"{folder / child.name}: this incomplete folder is in the way; complete or move it"
            )
    for child in children:
        if not (folder / child.name).exists():
            child.rename(folder / child.name)
