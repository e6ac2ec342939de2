"""Downloading files from the first of several addresses that works, with resumption and retries.

A file takes its name only when it is complete and has the expected size and checksum.
"""

import hashlib
import logging
import re
import shutil
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import requests
import urllib3
from tqdm import tqdm

from blocklora import __version__
from blocklora.data.registry import RemoteFile
from blocklora.errors import UserError
from blocklora.locks import Lock, hold_when_free

logger = logging.getLogger(__name__)

WORK = ".downloads"  # folder for unfinished downloads and locks, inside the folder to fill

_BLOCK = 2**20
_PERMANENT = (400, 401, 403, 404, 405, 410, 451)  # asking again would not change the answer


class _BadAddressError(Exception):
    """This address does not have the file, but the next one may."""


class _InterruptedError(Exception):
    """The transfer was interrupted, and a new request may complete it."""


@dataclass(frozen=True)
class Downloader:
    """Settings of downloads.

    Attributes:
        attempts: The number of attempts per address. An attempt that makes progress on a file with
            a checksum starts the count anew. A failure of Google Drive is final.
        backoff: Seconds to wait after the first failed attempt. The wait is doubled after each
            further one.
        timeout: Seconds to wait for a connection, and seconds to wait for further data. They do not
            apply to Google Drive.
    """

    attempts: int = 5
    backoff: float = 2.0
    timeout: tuple[float, float] = (20.0, 60.0)

    def fetch(self, file: RemoteFile, target: Path) -> None:
        """Download `file` to `target` from the first address that yields the right bytes.

        If the file has a checksum, an interrupted transfer is continued, also by a later call,
        except from Google Drive.

        Raises:
            UserError: No address yields the right bytes, and the message lists the reasons; or the
                file cannot be written, for example because the disk is full.
        """
        part = target.with_name(f"{target.name}.part")
        reasons = []
        for address in file.addresses:
            url = address.url
            logger.info("%s: downloading from %s", file.name, _without_password(url))
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                self._fetch_from(url, file, part)
                part.replace(target)
            except _BadAddressError as error:
                reasons.append(_without_password(f"  {url}: {error}"))
                logger.info("%s:%s", file.name, reasons[-1])
            except OSError as error:
                raise UserError(f"{part}: cannot be written: {error.strerror}") from None
            else:
                return
        raise UserError("\n".join([f"{file.name} cannot be downloaded:", *reasons]))

    def _fetch_from(self, url: str, file: RemoteFile, part: Path) -> None:
        failures = 0
        while True:
            if not file.checksum:  # nothing could tell whether two parts belong together
                part.unlink(missing_ok=True)
            have = _size(part)
            try:
                if url.startswith("gdrive:"):
                    _download_from_drive(url.removeprefix("gdrive:"), part)
                else:
                    self._transfer(url, file, part)
                _check_part(part, file, resumed=have > 0)
                return
            except _InterruptedError as error:
                # A transfer that makes progress may be interrupted any number of times.
                failures = 1 if file.checksum and _size(part) > have else failures + 1
                if failures == self.attempts:
                    raise _BadAddressError(f"{error} ({failures} attempts)") from None
                wait = self.backoff * 2 ** (failures - 1)
                reason = _without_password(str(error))
                logger.info("%s: %s; trying again in %g s", file.name, reason, wait)
                time.sleep(wait)

    def _transfer(self, url: str, file: RemoteFile, part: Path) -> None:
        """Append the missing bytes to `part`.

        Raises:
            _BadAddressError: The server does not have the file.
            _InterruptedError: The transfer failed for a reason that may pass.
            UserError: The disk has no room for the file.
        """
        have = _size(part)
        headers = {
            "User-Agent": f"blocklora/{__version__}",
            "Accept-Encoding": "identity",  # the bytes of the archive, not a decoded copy
        } | ({"Range": f"bytes={have}-"} if have else {})
        try:
            with requests.get(url, headers=headers, stream=True, timeout=self.timeout) as response:
                status, place = response.status_code, response.headers.get("Content-Range", "")
                if status == 416 and place == f"bytes */{have}":
                    return  # the part is complete
                if status == 416 or (status == 206 and not place.startswith(f"bytes {have}-")):
                    part.unlink(missing_ok=True)
                    raise _InterruptedError("the server cannot continue the transfer")
                if status not in (200, 206):
                    kind = _BadAddressError if status in _PERMANENT else _InterruptedError
                    raise kind(f"HTTP status {status} {response.reason}")
                if response.headers.get("Content-Type", "").startswith("text/html"):
                    raise _BadAddressError("the server sent a web page instead of the file")
                self._append(response, file, part, have if status == 206 else 0)
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            raise _InterruptedError(f"{type(error).__name__}: {error}") from None

    def _append(self, response: requests.Response, file: RemoteFile, part: Path, have: int) -> None:
        length = int(response.headers.get("Content-Length") or 0)
        total = file.bytes or (have + length) or None
        if total is not None:
            require_space(part.parent, total - have, file.name)
        bar = tqdm(
            total=total, initial=have, unit="B", unit_scale=True, desc=file.name, disable=None
        )
        with bar, part.open("ab" if have else "wb") as stream:
            for block in response.raw.stream(_BLOCK, decode_content=False):
                have += len(block)
                stream.write(block)
                bar.update(len(block))
                if file.bytes and have > file.bytes:
                    break  # an endless response must not fill the disk


def _download_from_drive(identifier: str, target: Path) -> None:
    import gdown

    try:  # gdown knows the page that confirms large files
        gdown.download(id=identifier, output=str(target), quiet=True)
    except (gdown.exceptions.DownloadError, OSError) as error:
        first, *_ = str(error).strip().splitlines() or [type(error).__name__]
        raise _BadAddressError(first) from None


def locked(folder: Path, name: str) -> AbstractContextManager[Lock]:
    """Let no other process put `name` into `folder` during the block; wait for one that does.

    Raises:
        UserError: The folder cannot be written to.
    """
    return hold_when_free(folder / WORK / f"{name}.lock", name)


def _without_password(text: str) -> str:
    """Return `text` without the user and password that an address in it may contain."""
    return re.sub(r"//[^/\s@]*@", "//", text)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _check_part(part: Path, file: RemoteFile, resumed: bool) -> None:
    try:
        check_file(part, file)
    except UserError as error:
        part.unlink()
        # The part that was continued may have come from another file, so a download of the whole
        # file may still succeed.
        raise (_InterruptedError if resumed else _BadAddressError)(str(error)) from None


def check_file(path: Path, file: RemoteFile) -> None:
    """Check that a file has the expected size and checksum.

    Raises:
        UserError: The size or the checksum differs. The message has the actual and the expected
            value.
    """
    size = path.stat().st_size
    if file.bytes and size != file.bytes:
        raise UserError(f"{path}: {size} bytes instead of {file.bytes}")
    if file.checksum:
        algorithm, expected = file.checksum.split(":")
        found = digest(path, algorithm)
        if found != expected:
            raise UserError(f"{path}: {algorithm} {found} instead of {expected}")


def digest(path: Path, algorithm: str) -> str:
    """Return the hexadecimal digest of a file.

    The algorithm is one of hashlib's, or `git-blob-sha1`, which gives git's id of the content.
    """
    size = path.stat().st_size
    is_git = algorithm == "git-blob-sha1"
    value = hashlib.new("sha1" if is_git else algorithm, usedforsecurity=False)
    if is_git:
        value.update(b"blob %d\0" % size)
    bar = tqdm(total=size, unit="B", unit_scale=True, desc=f"check {path.name}", disable=None)
    with bar, path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            value.update(block)
            bar.update(len(block))
    return value.hexdigest()


def require_space(folder: Path, size: int, what: str) -> None:
    """Check that the disk of `folder` has room for `size` bytes.

    Raises:
        UserError: It has less. The message calls the bytes `what`.
    """
    free = shutil.disk_usage(folder).free
    if free < size:
        raise UserError(
            f"{folder}: {what} needs {size / 1e9:.1f} GB, but only {free / 1e9:.1f} GB are free; "
            "make room or choose another folder"
        )
