"""Copies of weights and decoded images on a job's own disk, where a file server would be slow."""

import logging
import os
from pathlib import Path

from blocklora.errors import UserError
from blocklora.files import copy_file, json_digest

logger = logging.getLogger(__name__)


def staged(path: Path, scratch: str) -> Path:
    """Return a copy of a file below the folder `scratch`, made now if it is not there yet.

    Variables such as $TMPDIR in `scratch` are those of this process. A file that changes is copied
    anew. The file itself is returned where `scratch` is empty or has no room for it.

    Raises:
        UserError: a variable in `scratch` is not set.
    """
    if not scratch:
        return path
    place = Path(os.path.expandvars(scratch))
    if "$" in str(place):
        raise UserError(f"--scratch: {scratch}: this variable is not set on this machine")
    folder = place / f"blocklora-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if folder.stat().st_uid != os.getuid():  # others could have put anything there
            raise PermissionError(1, "another user's folder")
        state = path.stat()
        key = json_digest([str(path.resolve()), state.st_size, state.st_mtime_ns])
        copy = folder / f"{key[:16]}-{path.name}"
        if not copy.exists():
            copy_file(path, copy)
    except (OSError, UserError) as error:
        logger.warning("%s: is read from where it is; no copy was made (%s)", path, error)
        return path
    return copy
