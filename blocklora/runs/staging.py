"""Copies of weights and decoded images on the local disk, for nodes whose file server is slow."""

import errno
import logging
import os
from pathlib import Path

from blocklora.errors import UserError
from blocklora.files import copy_file, json_digest

logger = logging.getLogger(__name__)


def staged(path: Path, scratch: str) -> Path:
    """Return a copy of a file below the folder `scratch`, which is made if it is missing.

    Variables such as $TMPDIR in `scratch` are replaced by their values in this process. A file that
    has changed is copied again. If `scratch` is empty or no copy can be made there, the path itself
    is returned.

    Raises:
        UserError: A variable in `scratch` is not set.
    """
    if not scratch:
        return path
    expanded = os.path.expandvars(scratch)
    if "$" in expanded or not expanded:
        raise UserError(f"--scratch: {scratch}: this variable is not set on this machine")
    folder = Path(expanded) / f"blocklora-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if folder.stat().st_uid != os.getuid():  # its files cannot be trusted
            raise PermissionError(errno.EPERM, "another user's folder")
        state = path.stat()
        key = json_digest([str(path.resolve()), state.st_size, state.st_mtime_ns])
        copy = folder / f"{key[:16]}-{path.name}"
        if not copy.exists():
            copy_file(path, copy)
    except (OSError, UserError) as error:
        logger.warning("%s: no local copy was made (%s), so the file itself is read", path, error)
        return path
    return copy
