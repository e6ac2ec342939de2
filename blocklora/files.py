"""Helpers to write files completely or not at all, read JSON, and compute digests."""

import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from blocklora.errors import UserError

# The errno values of writes that fail for want of room or permission.
_UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; the file is renamed to `path` if the block succeeds.

    If the block raises an error, the temporary file is removed and `path` stays as it was. The
    temporary path has the suffix of `path`, because some writers choose the format by it.

    Raises:
        UserError: There is no room for the file, or no permission to write it.
    """
    path, temporary = Path(path), None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(
            dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix
        )
        os.close(handle)
        temporary = Path(name)
        yield temporary
        umask = os.umask(0)  # can be read only by setting it
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp makes files that only their owner may read
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())  # or the renamed file may be empty after a power cut
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        number = _error_number(error, path.parent)
        if number not in _UNWRITABLE:
            raise
        raise UserError(f"{path}: cannot be written ({os.strerror(number)})") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _error_number(error: OSError | SafetensorError, folder: Path) -> int | None:
    """Return the errno value of an error about a file in `folder`, or None for other errors."""
    if isinstance(error, SafetensorError):  # has the number in its text only
        found = re.search(r"\(os error (\d+)\)", str(error))
        return int(found[1]) if found else None
    # An error in writing to an open file names no file, one of `mkdir` names a folder, and one of
    # `shutil.copyfile` names the source before the target.
    folder = folder.absolute()
    named = [Path(n).absolute() for n in (error.filename, error.filename2) if n is not None]
    ours = any(folder in (p, p.parent) or p in folder.parents for p in named)
    return error.errno if ours or not named else None


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text to `path` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` to `path` atomically as indented JSON.

    Raises:
        ValueError: `value` contains NaN or infinity.
        UserError: The file cannot be written; see `atomic_path`.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    # A file name that is not UTF-8 has lone surrogates, which become JSON escapes.
    write_text(path, text.encode(errors="backslashreplace").decode() + "\n")


def read_json(path: str | Path) -> Any:
    """Return the JSON document in `path`.

    Raises:
        UserError: The file is missing, cannot be read or is not JSON (cut short, for example).
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(
            f"{path}: not a readable JSON file ({error}); delete it and run again"
        ) from None


def copy_file(path: str | Path, target: str | Path) -> None:
    """Copy the content of `path` to `target` atomically; see `atomic_path` for errors."""
    with atomic_path(target) as temporary:
        shutil.copyfile(path, temporary)


def folder_state(folder: str | Path) -> str:
    """Return a digest of the names, sizes and times of all files below a folder.

    It changes with any of the files, which need not be read. Links to folders are not followed,
    and a missing folder counts as empty.
    """
    listed = []
    for place, folders, names in os.walk(folder):
        folders.sort()
        for path in (Path(place, name) for name in sorted(names)):
            with suppress(OSError):  # broken links are reported when the files are read
                found = path.stat()
                listed.append([str(path.relative_to(folder)), found.st_size, found.st_mtime_ns])
    return json_digest(listed)


def file_digest(path: str | Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def json_digest(value: Any) -> str:
    """Return the SHA-256 of a JSON-serialisable value; the order of keys does not matter."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode(errors="backslashreplace")).hexdigest()
