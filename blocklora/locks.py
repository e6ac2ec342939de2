"""One process at a time: lock files that also hold between machines.

A lock says who holds it and since when. It outlives a process that is killed, so whoever finds one
asks whether its holder is alive: on the same machine by process number and start time, elsewhere by
watching its heartbeat. The heartbeat is the file's modification time, which only has to change;
no two clocks are compared, so that wrong or jumping clocks do no harm. A holder that was suspended
for so long that its lock was taken over notices it and stops.
"""

import json
import logging
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from threading import Event, Thread
from time import monotonic, sleep
from uuid import uuid4

from blocklora.errors import Interrupted, UserError

logger = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 10.0
# Long enough for a file server that hangs for a while; a living holder shows within a heartbeat.
SILENCE_SECONDS = 120.0
WAITING_SECONDS = 1.0


class LockedError(UserError):
    """Another process is at the same work: a temporary failure, like `Interrupted`."""

    exit_status = Interrupted.exit_status


@dataclass(frozen=True)
class Holder:
    """What a lock file says.

    Attributes:
        what: The work that is locked, in words, such as "run clip/digits/lora/4shot/seed1".
        host: name of the machine, for people.
        pid: process number on `machine`.
        machine: the boot and namespace in which process numbers mean the same; empty if unknown.
        process_start: the start of the process in clock ticks since boot, which tells it from a
            later process of the same number; empty if unknown.
        since: local time with its offset from UTC.
        token: unlike that of any other lock.
    """

    what: str
    host: str
    pid: int
    machine: str
    process_start: str
    since: str
    token: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"


@dataclass
class Lock:
    """A lock that is held; `lost` says in words that it no longer is."""

    what: str
    lost: str | None = None

    def require(self) -> None:
        """Check that the lock is still held.

        Raises:
            Interrupted: another process has taken it over.
        """
        if self.lost:
            raise Interrupted(f"{self.what}: stopped by {self.lost}, which finishes it")


@contextmanager
def hold(path: Path, what: str) -> Iterator[Lock]:
    """Hold the lock file `path` during the block, for the work that `what` names.

    Raises:
        LockedError: another process holds it.
        UserError: the lock cannot be written.
    """
    descriptor = _acquire(path, what)
    lock, released = Lock(what), Event()
    heart = Thread(target=_beat, args=(path, descriptor, lock, released), daemon=True)
    heart.start()
    try:
        yield lock
    finally:
        released.set()
        heart.join()
        with suppress(OSError):  # a lock that cannot be removed is found to be dead later
            _remove(path, os.pread(descriptor, 4096, 0))
        os.close(descriptor)


@contextmanager
def hold_when_free(
    path: Path, what: str, stop: Callable[[], None] = lambda: None
) -> Iterator[Lock]:
    """Hold the lock file `path` during the block, after waiting for any other holder.

    `stop` is called once a second while waiting, and ends it by raising an error.

    Raises:
        UserError: the lock cannot be written.
    """
    with ExitStack() as stack:
        lock, said = None, False
        while lock is None:
            try:
                lock = stack.enter_context(hold(path, what))
            except LockedError:
                if not said:
                    holder = read_holder(path) or "another process"
                    logger.info("%s: waiting for %s", what, holder)
                    said = True
                stop()
                sleep(WAITING_SECONDS)
        yield lock


def read_holder(path: Path) -> Holder | None:
    """Return what the lock file says; None if it is not there or not readable as a lock."""
    return _parse(_read(path) or b"")


def is_alive(holder: Holder) -> bool | None:
    """Return whether the holder's process exists; None if that cannot be told from here."""
    if not holder.machine or holder.machine != _machine():
        return None
    try:
        os.kill(holder.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # it is another user's, who may hide it from /proc
    state, start = _process(holder.pid)
    return state not in ("Z", "X") and start in ("", holder.process_start)


def _acquire(path: Path, what: str) -> int:
    """Create the lock file, over a dead one if need be, and return a descriptor of it."""
    pid, since = os.getpid(), datetime.now().astimezone().isoformat(timespec="seconds")
    start, token = _process(pid)[1], uuid4().hex
    holder = Holder(what, socket.gethostname(), pid, _machine(), start, since, token)
    descriptor = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        while descriptor is None:
            try:
                descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o644)
            except FileExistsError:
                _clear(path, what)
        os.write(descriptor, json.dumps(asdict(holder)).encode())
    except OSError as error:
        if descriptor is not None:
            os.close(descriptor)
            path.unlink(missing_ok=True)
        raise UserError(f"{path}: {what} cannot be locked ({error.strerror})") from None
    return descriptor


def _clear(path: Path, what: str) -> None:
    """Remove the lock file if its holder is dead, else raise `LockedError`."""
    content = _read(path)
    if content is None:
        return
    holder = _parse(content)
    alive = holder and is_alive(holder)
    if alive is None:
        logger.info("%s: there is a lock; watching whether it is in use", what)
        alive = _changes(path)
    if alive:
        raise LockedError(
            f"{what} is in work: {path} is held by {holder or 'an unknown process'}; "
            "wait for it or stop it, then start the same command again"
        )
    logger.warning("%s: took over from %s, which is dead", what, holder or "a damaged lock")
    _remove(path, content)


def _changes(path: Path) -> bool:
    """Return whether the heartbeat of a lock is seen before it has been silent for too long."""
    first, deadline = _modified(path), monotonic() + SILENCE_SECONDS
    while monotonic() < deadline:
        sleep(min(1.0, SILENCE_SECONDS / 10))
        if _modified(path) != first:
            return True
    return False


def _beat(path: Path, descriptor: int, lock: Lock, released: Event) -> None:
    while not released.wait(HEARTBEAT_SECONDS):
        try:
            if not os.path.samestat(os.fstat(descriptor), path.stat()):
                raise FileNotFoundError
            os.utime(descriptor)
        except FileNotFoundError:
            lock.lost = "the loss of its lock to another process"
            return
        except OSError as error:  # a file server that is away for a while
            logger.warning("%s: no heartbeat (%s)", path, error.strerror)


def _remove(path: Path, content: bytes) -> None:
    """Remove the lock file if it still has this content.

    It is renamed before it is looked at, since what a name stands for can change in between; a
    lock that another process has just taken is given back.
    """
    aside = path.with_name(f"{path.name}.{uuid4().hex}")
    with suppress(FileNotFoundError):
        path.rename(aside)
        if aside.read_bytes() != content:
            with suppress(OSError):
                os.link(aside, path)
        aside.unlink()


def _read(path: Path) -> bytes | None:
    with suppress(FileNotFoundError):
        return path.read_bytes()
    return None


def _parse(content: bytes) -> Holder | None:
    try:
        holder = Holder(**json.loads(content))
    except (ValueError, TypeError):
        return None
    return holder if isinstance(holder.pid, int) else None


def _modified(path: Path) -> int | None:
    # A network file system may answer a stat from its cache; opening a file asks the server.
    with suppress(FileNotFoundError), path.open("rb") as stream:
        return os.fstat(stream.fileno()).st_mtime_ns
    return None


def _machine() -> str:
    """Return what identifies this boot of this machine and the namespace of process numbers."""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    return ""


def _process(pid: int) -> tuple[str, str]:
    """Return a process's state and start time (proc(5), fields 3 and 22), empty if unknown."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "", ""
    fields = text.rpartition(")")[2].split()  # the second field, a name, may hold spaces
    return fields[0], fields[19]
