"""The cache: what any study may use again, looked up by the digest of all that it depends on.

An entry is a folder `<root>/<kind>/<key>/` with its files and `entry.json`, which says what it is.
It is made under a lock in a folder of another name, which takes its name when the entry is whole,
and never changes afterwards. The folder of a study has links to large files of entries and copies
of small ones: to the workflow, a link whose entry was removed is a file that is missing.
"""

import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from time import time

from blocklora.errors import UserError
from blocklora.files import copy_file, file_digest, json_digest, read_json, write_json
from blocklora.locks import hold_when_free, is_alive, read_holder

ENTRY = "entry.json"
UNFINISHED = "unfinished"
"""The folder of checkpoints and of the locks of runs, below the root."""
# Names that the cache gives: keys, and what is not finished or not removed yet.
OWN_NAME = re.compile(
    r"[0-9a-f]+(\.safetensors)?|\.[0-9a-f]+\.(partial|lock(\.[0-9a-f]+)?)"
    r"|\.[0-9a-f]+-.*\.safetensors|\.removed-.*"
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
    """A whole entry.

    Attributes:
        folder: The folder with its files.
        kind: The sort of entry, such as "weights".
        key: The digest of all that it depends on.
        about: A name of it for people.
        used: The time at which it was made or last used, in seconds since the epoch.
        sizes: The bytes of each of its files, by name.
        digests: The SHA-256 of each of its files, by name.
    """

    folder: Path
    kind: str
    key: str
    about: str
    used: float
    sizes: Mapping[str, int]
    digests: Mapping[str, str]

    @property
    def size(self) -> int:
        """Bytes of all its files."""
        return sum(self.sizes.values())

    def note_use(self) -> None:
        """Remember that the entry is in use, where this user may."""
        with suppress(OSError):
            os.utime(self.folder / ENTRY)


class Cache:
    """The entries below a folder, which need not exist yet."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    def find(self, kind: str, key: str) -> Entry | None:
        """Return an entry, or None if it is missing or, which is said in the log, damaged."""
        folder = self.root / kind / key
        try:
            if not folder.is_dir():
                return None
            entry = read_entry(folder)
            if (entry.kind, entry.key) != (kind, key):
                raise UserError(f"{folder}: holds the entry {entry.kind}/{entry.key}")
        except (OSError, UserError) as error:  # another user's, perhaps, who shows it to nobody
            logger.warning("%s; it is made again", error)
            return None
        entry.note_use()
        return entry

    def obtain(self, kind: str, key: str, about: str, write: Callable[[Path], None]) -> Entry:
        """Return an entry; where there is none, `write` makes its files in the folder it is given.

        While another process makes the same entry, this one waits.

        Raises:
            UserError: the entry cannot be written.
        """
        if found := self.find(kind, key):
            return found
        with hold_when_free(self.root / kind / f".{key}.lock", about):
            # Another process may have made it.
            return self.find(kind, key) or self._make(kind, key, about, write)

    def add(self, kind: str, key: str, about: str, files: Mapping[str, Path]) -> bool:
        """Copy files into an entry; return whether it is there now, or say in the log why not."""

        def copy(folder: Path) -> None:
            for name, path in files.items():
                copy_file(path, folder / name)

        if not self.can_keep(kind):
            return self.find(kind, key) is not None
        try:
            self.obtain(kind, key, about, copy)
        except UserError as error:
            logger.warning("%s was not kept for other studies: %s", about, error)
            return False
        return True

    def provide(
        self,
        kind: str,
        digest: str,
        contents: object,
        about: str,
        output: Path,
        write: Callable[[Path], None],
        *,
        link: bool,
    ) -> None:
        """Put the file of an entry at `output`, made first by `write` where there is no such entry.

        Where the cache may not be written to, the file is made at `output` itself.

        Args:
            kind: The sort of entry, such as "pixels".
            digest: The digest of its definition and of the code that decides it.
            contents: Further JSON values that it depends on, such as digests of the files that it
                is made from.
            about: A name of it for people.
            output: The path of the file in the study's folder.
            write: A function that writes the file to the path that it is given.
            link: True leaves a link to the entry at `output`, False a copy.

        Raises:
            UserError: the file cannot be made or written.
        """
        key, name = json_digest([digest, contents]), f"content{output.suffix}"
        if self.can_keep(kind):
            found = self.obtain(kind, key, about, lambda folder: write(folder / name))
        else:
            found = self.find(kind, key)
        if found:
            place(found.folder / name, output, link=link)
        else:
            write(output)

    def can_keep(self, kind: str) -> bool:
        """Make the folder of a kind, and return whether entries can be made in it.

        If not, the log says why.
        """
        folder = self.root / kind
        try:
            folder.mkdir(parents=True, exist_ok=True)
            reason = None if os.access(folder, os.W_OK | os.X_OK) else "not writable"
        except OSError as error:
            reason = error.strerror
        if reason:
            logger.warning("%s: %s, so nothing is kept there for other studies", folder, reason)
        return reason is None

    def entries(self) -> Iterator[Entry]:
        """Yield every entry; those that are damaged are left out."""
        for path in sorted(self.root.glob(f"*/*/{ENTRY}")):
            with suppress(UserError):
                yield read_entry(path.parent)

    def remove(self, entry: Entry) -> None:
        """Remove an entry; links to it then count as missing.

        Raises:
            UserError: it may not be removed.
        """
        try:
            _remove(entry.folder)
        except OSError as error:
            raise UserError(f"{entry.folder}: cannot be removed ({error.strerror})") from None

    def prune(self, days: int) -> tuple[int, int]:
        """Remove what was not used for so many days; return the number of entries and bytes.

        Checkpoints that nobody works on, and what killed processes left, go by the same rule.

        Raises:
            UserError: something may not be removed.
        """
        latest = time() - days * 86400
        unused = [entry for entry in self.entries() if entry.used <= latest]
        for entry in unused:
            self.remove(entry)
        damaged = [path for path in self.root.glob("*/*/") if not (path / ENTRY).exists()]
        unfinished = [*self.root.glob("*/.*"), *self.root.glob(f"{UNFINISHED}/*.safetensors")]
        for path in [*damaged, *unfinished]:
            # A folder that somebody took for a cache has other things in it.
            if OWN_NAME.fullmatch(path.name) and not _is_in_work(path):
                _remove_older(path, latest)
        return len(unused), sum(entry.size for entry in unused)

    def _make(self, kind: str, key: str, about: str, write: Callable[[Path], None]) -> Entry:
        folder = self.root / kind / key
        partial = folder.with_name(f".{key}.partial")
        try:
            shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
            partial.mkdir()
            write(partial)
            files = {
                path.name: {"bytes": path.stat().st_size, "sha256": file_digest(path)}
                for path in sorted(partial.iterdir())
            }
            for name in files:
                with suppress(OSError):
                    (partial / name).chmod((partial / name).stat().st_mode & ~0o222)
            facts = {"kind": kind, "key": key, "about": about, "files": files}
            write_json(partial / ENTRY, facts)
            _remove(folder)
            partial.rename(folder)
        except OSError as error:
            raise UserError(f"{folder}: cannot be written ({error.strerror})") from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return read_entry(folder)


def read_entry(folder: Path) -> Entry:
    """Return the entry in a folder.

    Raises:
        UserError: it is damaged.
    """
    facts = read_json(folder / ENTRY)
    try:
        files = facts["files"]
        entry = Entry(
            folder,
            facts["kind"],
            facts["key"],
            facts["about"],
            (folder / ENTRY).stat().st_mtime,
            {name: file["bytes"] for name, file in files.items()},
            {name: file["sha256"] for name, file in files.items()},
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder / ENTRY}: does not describe an entry ({error})") from None
    for name, size in entry.sizes.items():
        path = folder / name
        if not path.is_file():
            raise UserError(f"{path}: is gone from the cache")
        if path.stat().st_size != size:
            raise UserError(f"{path}: has {path.stat().st_size} bytes instead of {size}")
    return entry


def place(path: Path, output: Path, *, link: bool) -> None:
    """Put a link to the file of an entry, or a copy of it, at `output`, unless it is there.

    Where the file system has no links, a copy is made.

    Raises:
        UserError: `output` cannot be written.
    """
    if link and _link(path, output):
        return
    if output.is_file() and file_digest(output) == file_digest(path):
        return
    copy_file(path, output)


def content_digest(path: Path) -> str:
    """Return the SHA-256 of a file; that of a link into the cache is known.

    Raises:
        UserError: there is no such file, or it cannot be read.
    """
    target = path.resolve()
    with suppress(OSError, UserError, KeyError):
        if path.is_symlink() and (target.parent / ENTRY).is_file():
            return read_entry(target.parent).digests[target.name]
    try:
        return file_digest(target)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def _link(path: Path, output: Path) -> bool:
    """Return whether `output` is a link to `path` now."""
    target = path if path.is_absolute() else Path(os.path.relpath(path, output.parent))
    try:
        if output.is_symlink() and output.readlink() == target:
            return True
        output.parent.mkdir(parents=True, exist_ok=True)
        temporary = output.with_name(f".{output.name}.{os.getpid()}")
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(target)
        temporary.replace(output)
    except OSError as error:
        logger.info("%s: no link can be made here (%s)", output, error.strerror)
        return False
    return True


def _is_in_work(path: Path) -> bool:
    """Return whether a process holds the lock of a checkpoint or of an unfinished entry."""
    lock = path if path.suffix == ".lock" else path.with_suffix(".lock")
    holder = read_holder(lock)
    return holder is not None and is_alive(holder) is not False


def _remove(folder: Path) -> None:
    """Remove the folder of an entry, so that it is never seen in part."""
    if folder.exists():
        aside = Path(mkdtemp(prefix=".removed-", dir=folder.parent))
        folder.rename(aside / folder.name)
        shutil.rmtree(aside)


def _remove_older(path: Path, latest: float) -> None:
    """Remove a file or folder that did not change after a time, in seconds since the epoch.

    Raises:
        UserError: it may not be removed.
    """
    try:
        if path.stat().st_mtime <= latest:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    except FileNotFoundError:
        pass
    except OSError as error:
        raise UserError(f"{path}: cannot be removed ({error.strerror})") from None
