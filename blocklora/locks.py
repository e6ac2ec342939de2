"""Lock files that let one process at a time do some work, also across machines.

A lock file says who holds it and since when. It outlives a process that is killed, so a process
that finds one checks whether the holder is alive: on the same machine by process number and start
time, on another one by its heartbeat. The heartbeat is the file's modification time, which only has
to change. No two clocks are compared, so wrong or jumping clocks do no harm. If a holder is
suspended for so long that another process takes over its lock, the holder notices this when it goes
on, and stops.
"""

import json
import logging
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from errno import ESTALE
from pathlib import Path
from threading import Event, Thread
from time import monotonic, sleep
from uuid import uuid4

from blocklora.errors import Interrupted, UserError

logger = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 10.0
# A living holder shows within one heartbeat. Waiting longer allows for a file server that hangs.
SILENCE_SECONDS = 120.0
WAITING_SECONDS = 1.0


class LockedError(UserError):
    """Another process is doing the same work; this is a temporary failure, like `Interrupted`."""

    exit_status = Interrupted.exit_status


@dataclass(frozen=True)
class Holder:
    """The content of a lock file.

    Attributes:
        what: A name for the work, such as "run clip/digits/lora/4shot/seed1".
        host: The name of the machine, for people.
        pid: The number of the process on `machine`.
        machine: Identifies the boot of the machine and the namespace of processes in which `pid`
            is valid. Empty if unknown.
        process_start: When the process started, in clock ticks since boot. A later process of the
            same number has another start. Empty if unknown.
        since: Local time with its offset from UTC.
        token: A random text that no other lock has.
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
    """A lock of this process; `lost` becomes true if another process takes it over."""

    what: str
    lost: bool = False

    def require(self) -> None:
        """Check that the lock is still held.

        Raises:
            Interrupted: Another process has taken it over.
        """
        if self.lost:
            raise Interrupted(
                f"{self.what}: stopped here, because another process took over the lock and "
                "goes on with the work"
            )


@contextmanager
def hold(path: Path, what: str, stop: Callable[[], None] | None = None) -> Iterator[Lock]:
    """Hold the lock file `path` during the block; `what` names the work in messages.

    With `stop`, this waits until the lock is free; see `hold_when_free`.

    Raises:
        LockedError: Another process holds the lock, and there is no `stop`.
        UserError: The lock file cannot be written.
    """
    descriptor, said = None, False
    while descriptor is None:
        try:
            descriptor = _acquire(path, what, stop, said)
        except LockedError:
            if stop is None:
                raise
            if not said:
                logger.info("%s: waiting for %s", what, read_holder(path) or "another process")
                said = True
            stop()
            sleep(WAITING_SECONDS)
    lock, released = Lock(what), Event()
    heart = Thread(target=_beat, args=(path, descriptor, lock, released), daemon=True)
    heart.start()
    try:
        yield lock
    finally:
        released.set()
        heart.join()
        if not lock.lost:
            with suppress(OSError):  # others will find that the holder is dead
                _remove(path, os.pread(descriptor, 4096, 0))
        os.close(descriptor)


def hold_when_free(
    path: Path, what: str, stop: Callable[[], None] = lambda: None
) -> AbstractContextManager[Lock]:
    """Wait until the lock file `path` is free, and hold it during the block.

    While it waits, `stop` is called about every second, and it may raise an error to give up.

    Raises:
        UserError: The lock file cannot be written.
    """
    return hold(path, what, stop)


def read_holder(path: Path) -> Holder | None:
    """Return the content of a lock file, or None if it is missing or damaged."""
    return _parse(_read(path) or b"")


def is_alive(holder: Holder) -> bool | None:
    """Return whether the holder's process exists, or None if this machine cannot tell."""
    if not holder.machine or holder.machine != _machine():
        return None
    try:
        os.kill(holder.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # the process of another user exists, although /proc may hide it
    state, start = _process(holder.pid)
    return state not in ("Z", "X") and start in ("", holder.process_start)


def _acquire(path: Path, what: str, stop: Callable[[], None] | None, quiet: bool) -> int:
    """Create the lock file, replacing that of a dead process, and return its descriptor.

    While this watches a lock of another machine, it calls `stop`; `quiet` keeps that from the log.
    """
    pid, since = os.getpid(), datetime.now().astimezone().isoformat(timespec="seconds")
    start, token = _process(pid)[1], uuid4().hex
    holder = Holder(what, socket.gethostname(), pid, _machine(), start, since, token)
    descriptor = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        while descriptor is None:
            try:
                descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o644)
                with suppress(OSError):  # everybody has to read it, whatever the umask is
                    os.fchmod(descriptor, 0o644)
            except FileExistsError:
                _clear(path, what, stop, quiet)
        os.write(descriptor, json.dumps(asdict(holder)).encode())
    except OSError as error:
        if descriptor is not None:
            os.close(descriptor)
            path.unlink(missing_ok=True)
        raise UserError(
            f"{path}: cannot write this lock file for {what} ({error.strerror}); make room there, "
            "or choose a folder that you may write to"
        ) from None
    return descriptor


def _clear(path: Path, what: str, stop: Callable[[], None] | None, quiet: bool) -> None:
    """Remove the lock file if its holder is dead, or else raise `LockedError`."""
    content = _read(path)
    if content is None:
        return
    holder = _parse(content)
    alive = holder and is_alive(holder)
    if alive is None:
        if not quiet:
            logger.info("%s: found a lock; watching whether its holder is alive", what)
        alive = _changes(path, stop)
    if alive:
        raise LockedError(
            f"{what}: {holder or 'an unknown process'} is working on it (it holds the lock "
            f"{path}); wait for it or stop it, then start the same command again"
        )
    logger.warning("%s: took over from %s, which is gone", what, holder or "a damaged lock")
    _remove(path, content)


def _changes(path: Path, stop: Callable[[], None] | None) -> bool:
    """Watch a lock for `SILENCE_SECONDS` and return whether there was a heartbeat."""
    first, deadline = _modified(path), monotonic() + SILENCE_SECONDS
    while monotonic() < deadline:
        sleep(min(1.0, SILENCE_SECONDS / 10))
        if stop is not None:
            stop()
        if _modified(path) != first:
            return True
    return False


def _beat(path: Path, descriptor: int, lock: Lock, released: Event) -> None:
    """Send heartbeats until the lock is released, or mark it as lost if it is taken over."""
    while not released.wait(HEARTBEAT_SECONDS):
        try:
            if not os.path.samestat(os.fstat(descriptor), path.stat()):
                raise FileNotFoundError
            os.utime(descriptor)
        except OSError as error:
            # Over NFS, the handle of a file that another machine has removed is stale.
            if isinstance(error, FileNotFoundError) or error.errno == ESTALE:
                lock.lost = True
                return
            # The file server may come back.
            logger.warning("%s: cannot update this lock file (%s)", path, error.strerror)


def _remove(path: Path, content: bytes) -> None:
    """Remove the lock file if it still has this content.

    It is renamed before it is read, because another process could replace it between the reading
    and the removal. If another process has just taken the lock, the file gets its name back.
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
    # A network file system may answer stat from its cache, but opening a file asks the server.
    with suppress(FileNotFoundError), path.open("rb") as stream:
        return os.fstat(stream.fileno()).st_mtime_ns
    return None


def _machine() -> str:
    """Return an identifier of this boot of the machine and of the namespace of processes."""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    return ""


def _process(pid: int) -> tuple[str, str]:
    """Return the state and start time of a process (proc(5), fields 3 and 22), empty if unknown.

    The start time counts from boot. Unlike psutil's, it stays comparable when the clock is set.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "", ""
    fields = text.rpartition(")")[2].split()  # the second field, a name, may contain spaces
    return fields[0], fields[19]
