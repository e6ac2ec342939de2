"""The cache, which keeps files for several studies under a digest of all that they depend on.

An entry is a folder `<root>/<kind>/<key>/` with some files and `entry.json`, which describes them.
It is made under a lock in a hidden folder, which gets its final name when the entry is complete. It
never changes afterwards. In a study's folder, large files are links to entries and small ones are
copies. If an entry is removed, the workflow sees a broken link, that is, a missing file.
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
from typing import Any

from blocklora.errors import UserError
from blocklora.files import copy_file, file_digest, json_digest, read_json, write_json
from blocklora.locks import hold_when_free, is_alive, read_holder

ENTRY = "entry.json"
UNFINISHED = "unfinished"
"""The folder below the root for checkpoints and for the locks of fits and tests."""
# The names that this package gives to entries, and to files that are unfinished or being removed.
_KEY = "[0-9a-f]{64}"
OWN_NAME = re.compile(
    rf"{_KEY}(\.safetensors)?|\.{_KEY}\.(partial|lock(\.[0-9a-f]+)?)"
    rf"|\.(?P<written>{_KEY})-.*\.safetensors|\.removed-.*"
)
SECONDS_PER_DAY = 86400

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
    """A complete entry.

    Attributes:
        folder: The folder with its files.
        used: The time at which it was made or last used, in seconds since the epoch.
        kind: The kind of entry, such as "weights".
        key: The digest of all that it depends on.
        about: A description for people.
        files: The facts "bytes" and "sha256" about each file, by its name.
    """

    folder: Path
    used: float
    kind: str
    key: str
    about: str
    files: Mapping[str, Mapping[str, Any]]

    @property
    def size(self) -> int:
        """The size of all its files in bytes."""
        return sum(file["bytes"] for file in self.files.values())


class Cache:
    """The entries below a folder, which need not exist yet."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    def find(self, kind: str, key: str) -> Entry | None:
        """Return an entry and note that it was used, or return None if there is no such entry.

        An entry that is damaged or cannot be read is reported in the log and counts as missing.
        """
        folder = self.root / kind / key
        try:
            if not folder.is_dir():
                return None
            entry = read_entry(folder)
            if (entry.kind, entry.key) != (kind, key):
                raise UserError(f"{folder}: holds the entry {entry.kind}/{entry.key}")
        except (OSError, UserError) as error:
            logger.warning("%s; it is made again", error)
            return None
        with suppress(OSError):  # the entry may belong to another user
            os.utime(folder / ENTRY)
        return entry

    def obtain(self, kind: str, key: str, about: str, write: Callable[[Path], None]) -> Entry:
        """Return an entry, after making it if it is missing.

        `write` is called with a folder and writes the files of the entry there. If another process
        is making the same entry, this process waits for it.

        Raises:
            UserError: The entry cannot be written.
        """
        if found := self.find(kind, key):
            return found
        with hold_when_free(self.root / kind / f".{key}.lock", about):
            # Another process may have made it meanwhile.
            return self.find(kind, key) or self._make(kind, key, about, write)

    def add(self, kind: str, key: str, about: str, files: Mapping[str, Path]) -> bool:
        """Copy files into an entry and return True, or log the reason and return False."""

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
        """Put the file of an entry at `output`, after making the entry if it is missing.

        If the cache cannot be written to, the file is written to `output` directly.

        Args:
            kind: The kind of entry, such as "pixels".
            digest: The digest of the definition of the file and of the code that decides it.
            contents: Further JSON values that the file depends on, such as digests of its inputs.
            about: A description for people.
            output: The path of the file in the study's folder.
            write: A function that writes the file to the path that it is given.
            link: True puts a link to the entry at `output`, False a copy.

        Raises:
            UserError: The file cannot be made or written.
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
        """Make the folder of a kind and return True if entries can be made in it.

        If they cannot, the reason is logged.
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
        """Yield every entry that is not damaged."""
        for path in sorted(self.root.glob(f"*/[!.]*/{ENTRY}")):
            with suppress(UserError):
                yield read_entry(path.parent)

    def prune(self, days: int) -> tuple[int, int]:
        """Remove entries that were not used for `days` days, and return their number and bytes.

        Damaged entries, checkpoints that no process works on, and the remains of killed processes
        are removed after the same time. Files that the cache has not made are never touched.

        Raises:
            UserError: Something cannot be removed.
        """
        latest = time() - days * SECONDS_PER_DAY
        whole = list(self.entries())
        unused = [entry for entry in whole if entry.used <= latest]
        for entry in unused:
            remove(entry.folder)
        damaged = {*self.root.glob("*/[!.]*/")} - {entry.folder for entry in whole}
        unfinished = [*self.root.glob("*/.*"), *self.root.glob(f"{UNFINISHED}/*.safetensors")]
        for path in [*damaged, *unfinished]:
            if OWN_NAME.fullmatch(path.name) and not _is_locked(path):
                with suppress(FileNotFoundError):
                    if path.stat().st_mtime <= latest:
                        remove(path)
        return len(unused), sum(entry.size for entry in unused)

    def _make(self, kind: str, key: str, about: str, write: Callable[[Path], None]) -> Entry:
        folder = self.root / kind / key
        partial = folder.with_name(f".{key}.partial")
        try:
            shutil.rmtree(partial, ignore_errors=True)  # left by a process that was killed
            partial.mkdir()
            write(partial)
            files = {}
            for path in sorted(partial.iterdir()):
                files[path.name] = {"bytes": path.stat().st_size, "sha256": file_digest(path)}
                with suppress(OSError):
                    path.chmod(path.stat().st_mode & ~0o222)
            facts = {"kind": kind, "key": key, "about": about, "files": files}
            write_json(partial / ENTRY, facts)
            remove(folder)
            partial.rename(folder)
        except OSError as error:
            raise UserError(f"{folder}: cannot be written ({error.strerror})") from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return read_entry(folder)


def read_entry(folder: Path) -> Entry:
    """Return the entry in a folder.

    Raises:
        UserError: The entry is damaged.
    """
    facts = read_json(folder / ENTRY)
    try:
        entry = Entry(folder, (folder / ENTRY).stat().st_mtime, **facts)
        for name, file in entry.files.items():
            path, size = folder / name, file["bytes"]
            if not path.is_file():
                raise UserError(f"{path}: is gone from the cache")
            if path.stat().st_size != size:
                raise UserError(f"{path}: has {path.stat().st_size} bytes instead of {size}")
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder / ENTRY}: does not describe an entry ({error})") from None
    except OSError as error:  # another process has just removed it
        raise UserError(f"{folder}: cannot be read ({error.strerror})") from None
    return entry


def remove(path: Path) -> None:
    """Remove a file or folder if it exists. Other processes never see a part of a folder.

    Raises:
        UserError: It cannot be removed.
    """
    try:
        if path.is_dir():
            aside = Path(mkdtemp(prefix=".removed-", dir=path.parent))
            path.rename(aside / path.name)
            shutil.rmtree(aside)
        else:
            path.unlink()
    except FileNotFoundError:
        pass
    except OSError as error:
        raise UserError(f"{path}: cannot be removed ({error.strerror})") from None


def place(path: Path, output: Path, *, link: bool) -> None:
    """Put a link to the file of an entry, or a copy of it, at `output`.

    If the right file is already there, `output` is not touched. If no link can be made, the file is
    copied.

    Raises:
        UserError: `output` cannot be written.
    """
    if link and _link(path, output):
        return
    if output.is_file() and file_digest(output) == file_digest(path):
        return
    copy_file(path, output)


def content_digest(path: Path) -> str:
    """Return the SHA-256 of a file, which is read from the entry if the file is a link to one.

    Raises:
        UserError: The file is missing or cannot be read.
    """
    target = path.resolve()
    with suppress(OSError, UserError, KeyError):
        if path.is_symlink() and (target.parent / ENTRY).is_file():
            digest = read_entry(target.parent).files[target.name]["sha256"]
            with suppress(OSError):  # the entry may belong to another user
                os.utime(target.parent / ENTRY)
            return digest
    try:
        return file_digest(target)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def _link(path: Path, output: Path) -> bool:
    """Make `output` a link to `path` and return True, or return False if that fails."""
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        # The system follows `..` from the folder that `output` is really in.
        folder = output.parent.resolve()
        target = path if path.is_absolute() else Path(os.path.relpath(path.resolve(), folder))
        if output.is_symlink() and output.readlink() == target:
            return True
        temporary = output.with_name(f".{output.name}.{os.getpid()}")
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(target)
        temporary.replace(output)
    except OSError as error:
        logger.info("%s: no link can be made here (%s)", output, error.strerror)
        return False
    return True


def _is_locked(path: Path) -> bool:
    """Return True if a process may hold the lock of a checkpoint or of an unfinished entry."""
    if (name := OWN_NAME.fullmatch(path.name)) and name["written"]:
        path = path.with_name(name["written"])  # the checkpoint that is being written
    holder = read_holder(path.with_suffix(".lock"))
    return holder is not None and is_alive(holder) is not False
