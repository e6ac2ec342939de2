"""Files that are either whole or absent, and digests of their content."""

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

# What a file system says that is full, read-only or another user's.
UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` that takes its name when the block succeeds.

    If the block raises, the temporary file is removed and whatever stood at `path` stays.
    The suffix is kept, since some writers choose a format by it.

    Raises:
        UserError: there is no room for the file, or it may not be written.
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
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        number = _error_number(error, path.parent)
        if number not in UNWRITABLE:
            raise
        raise UserError(f"{path}: cannot be written ({os.strerror(number)})") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _error_number(error: OSError | SafetensorError, folder: Path) -> int | None:
    """Return the number of an error of the system about a file in `folder`, None for others."""
    if isinstance(error, SafetensorError):  # it has the number in words alone
        found = re.search(r"\(os error (\d+)\)", str(error))
        return int(found[1]) if found else None
    about = error.filename  # that of a file is known when it is opened, not when it is written
    known = about is None or Path(about).parent.absolute() == folder.absolute()
    return error.errno if known else None


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text to `path` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` to `path` atomically as indented JSON; NaN and infinity are refused."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    # Bytes of a file name that are not UTF-8 become JSON's own escapes.
    write_text(path, text.encode(errors="backslashreplace").decode() + "\n")


def read_json(path: str | Path) -> Any:
    """Return the JSON document in `path`.

    Raises:
        UserError: the file is missing, unreadable or not JSON (cut short, for example).
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
    """Copy the content of `path` to `target` atomically.

    Raises:
        UserError: `target` cannot be written.
    """
    with atomic_path(target) as temporary:
        shutil.copyfile(path, temporary)


def folder_state(folder: str | Path) -> str:
    """Return a digest of the names, sizes and times of all files below a folder.

    It tells whether any of them changed, without reading them. Folders behind links are left out.
    """
    listed = []
    for place, folders, names in os.walk(folder):
        folders.sort()
        for path in (Path(place, name) for name in sorted(names)):
            with suppress(OSError):  # a link to nothing is reported when the files are read
                found = path.stat()
                listed.append([str(path.relative_to(folder)), found.st_size, found.st_mtime_ns])
    return json_digest(listed)


def file_digest(path: str | Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def json_digest(value: Any) -> str:
    """Return the SHA-256 of a JSON-serialisable value, independent of key order."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode(errors="backslashreplace")).hexdigest()
