"""Safe unpacking of zip and tar archives from untrusted sources.

Rules select the members to unpack and say where to put them. They map a path in the archive to a
path in the target folder, and the first key that matches a member counts. A key matches the member
of that name and everything below it. The key `""` matches all members, and `**/name` matches `name`
at any depth. If a value is a mapping instead of a path, the member is itself a tar archive, and the
rules in that mapping apply to its members. In them, `{archive}` stands for the name of the archive
up to its first dot. The key of such a mapping may be a pattern such as `*.tar`.

Only regular files are written, and each is created by this module, so the modes and owners in an
archive have no effect. An archive with a link or a device is refused.
"""

import fnmatch
import lzma
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import IO, Any

from tqdm import tqdm

from blocklora.errors import UserError

# The most that an archive may grow, as a multiple of its size. JPEGs hardly compress, so archives
# of photographs stay far below it.
MAXIMUM_GROWTH = 10
MAXIMUM_MEMBERS = 3_000_000
MAXIMUM_HEADER = 2**20  # bytes of a tar header for a long name
_SLACK = 64 * 2**20  # bytes allowed on top, because archives of small drawings compress well
_BLOCK = 2**20
_ZIP_MAGIC = (b"PK\x03\x04", b"PK\x05\x06")

# The name, stream and declared size of a regular file in an archive.
_Member = tuple[str, IO[bytes], int]


class _StrictInfo(tarfile.TarInfo):
    """A member that refuses truncated and huge headers, which tarfile accepts."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> tarfile.TarInfo:
        try:
            return super().fromtarfile(archive)
        except tarfile.TruncatedHeaderError:
            raise tarfile.ReadError("it ends in the middle of a header") from None

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        # tarfile documents this method as a hook for subclasses.
        extended = not (self.isreg() or self.isdir() or self.issym() or self.islnk())
        if extended and self.size > MAXIMUM_HEADER:
            raise tarfile.ReadError(f"a header of {self.size} bytes")
        return super()._proc_member(archive)


_DAMAGE = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    RuntimeError,  # an encrypted zip member, or a compression method that Python does not have
    ValueError,
)


class _Budget:
    """The limits for unpacking an archive and those nested in it, and the progress bar."""

    def __init__(self, archive: Path, bar: tqdm):
        self.archive = archive
        self.bar = bar
        self._bytes = MAXIMUM_GROWTH * archive.stat().st_size + _SLACK
        self._members = MAXIMUM_MEMBERS

    def admit(self, name: str, is_plain: bool) -> str:
        """Count a member and return its normalised path.

        Raises:
            UserError: There are too many members, or this one leads out of the folder or is not
                `is_plain`, that is, a file or a folder.
        """
        self._members -= 1
        if self._members < 0:
            raise self.refusal(f"it has more than {MAXIMUM_MEMBERS} members")
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name:
            raise self.refusal(f"{name!r} leads out of the folder")
        if not is_plain:
            raise self.refusal(f"{str(path)!r} is a link or a device")
        return str(path)

    def take(self, size: int) -> None:
        """Count unpacked bytes.

        Raises:
            UserError: The archive has grown too much.
        """
        self._bytes -= size
        if self._bytes < 0:
            raise self.refusal(
                f"it grows to more than {MAXIMUM_GROWTH} times its size when unpacked"
            )

    def refusal(self, reason: str) -> UserError:
        """Return the error for an archive that is not to be trusted."""
        return UserError(
            f"{self.archive}: refused: {reason}; the archive is damaged or hostile: delete it and "
            "fetch it from another address"
        )


def unpack(archive: Path, folder: Path, rules: Mapping[str, Any]) -> None:
    """Unpack the members of `archive` that match `rules` into `folder`.

    Raises:
        UserError: The archive is not a complete zip or tar file; it contains a link, a device, an
            absolute path, `..` or a file twice; it grows too much; or a rule matches no member.
    """
    folder.mkdir(parents=True, exist_ok=True)
    bar = tqdm(desc=f"unpack {archive.name}", unit="file", disable=None)
    budget = _Budget(archive, bar)
    with archive.open("rb") as stream, bar:
        try:
            zipped = stream.peek(4)[:4] in _ZIP_MAGIC
            members = (_zip_members if zipped else _tar_members)(stream, budget)
            _unpack(members, archive.name, folder, rules, budget)
        except _DAMAGE as error:
            raise UserError(
                f"{archive}: not a whole zip or tar archive ({error}); delete it and fetch it again"
            ) from None


def _unpack(
    members: Iterator[_Member], name: str, folder: Path, rules: Mapping[str, Any], budget: _Budget
) -> None:
    used: set[str] = set()
    for path, stream, size in members:
        found = _match(path, rules)
        if found is None:
            budget.take(size)  # a member has to be read to get to the next one of a tar
            continue
        key, rest = found
        used.add(key)
        if isinstance(rules[key], str):
            target = rules[key].replace("{archive}", name.partition(".")[0])
            _write(stream, folder / target / rest, budget)
            budget.bar.update()
        else:
            inner = PurePosixPath(path).name
            # A nested zip cannot be read, because zipfile has to seek and a member is a stream.
            _unpack(_tar_members(stream, budget), inner, folder, rules[key], budget)
    for key in rules:
        if key not in used:
            raise UserError(
                f"{budget.archive}: {name} has nothing at {key!r}, so it is not the expected "
                "archive; delete it and fetch it again"
            )


def _match(name: str, rules: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return the key that matches a member, and the member's path below that key."""
    path = f"/{name}/"
    for key, target in rules.items():
        if not isinstance(target, str):
            if fnmatch.fnmatchcase(name, key):
                return key, ""
            continue
        folder = key.removeprefix("**/")
        wanted = f"/{folder}/" if folder else "/"
        start = path.find(wanted)
        at_any_depth = folder != key
        if start == 0 or (start > 0 and at_any_depth):
            return key, path[start + len(wanted) :].removesuffix("/")
    return None


def _zip_members(stream: IO[bytes], budget: _Budget) -> Iterator[_Member]:
    with zipfile.ZipFile(stream) as archive:
        for info in archive.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)  # 0 if the zip was not made on Unix
            name = budget.admit(info.filename, kind in (0, stat.S_IFREG, stat.S_IFDIR))
            if info.is_dir():
                continue
            with archive.open(info) as content:
                yield name, content, info.file_size


def _tar_members(stream: IO[bytes], budget: _Budget) -> Iterator[_Member]:
    with tarfile.open(fileobj=stream, mode="r|*", tarinfo=_StrictInfo) as archive:
        for info in archive:
            name = budget.admit(info.name, info.isreg() or info.isdir())
            # Otherwise, the headers of all members would stay in memory.
            archive.members = []
            if info.isreg():
                yield name, archive.extractfile(info), info.size


def _write(source: IO[bytes], target: Path, budget: _Budget) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("xb") as stream:
            while block := source.read(_BLOCK):
                budget.take(len(block))
                stream.write(block)
    except (FileExistsError, NotADirectoryError):
        raise budget.refusal(f"it has {target.name!r} twice") from None
