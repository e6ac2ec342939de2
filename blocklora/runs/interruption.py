"""Signals that ask a run to stop at the next step instead of dying in the middle of one."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# SIGTERM comes with a cancelled job, SIGUSR1 as a notice of pre-emption, SIGINT with Ctrl-C.
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class Interruption:
    """Whether, and by which signal, the process was asked to stop."""

    _noted: str | None = None

    @property
    def signal_name(self) -> str | None:
        """The name of the signal, or None; to be asked between two steps."""
        waiting = signal.sigpending() & set(SIGNALS)
        return min(waiting).name if waiting else self._noted

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._noted = signal.Signals(number).name


@contextmanager
def catch_interruption() -> Iterator[Interruption]:
    """Keep the signals of `SIGNALS` waiting during the block instead of dying of them.

    To be entered before numpy and torch are imported: the threads that they start must keep them
    waiting too. A handler alone would not do. To call it, the system writes below the stack
    pointer, which some matrix products of oneDNN (before its change 4855) let point into the heap.
    """
    interruption = Interruption()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    # For a thread that was there before, which may be given the signal.
    previous = {number: signal.signal(number, interruption._note) for number in SIGNALS}
    try:
        yield interruption
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in previous.items():
            signal.signal(number, handler)
