"""Signals that ask a run to stop: it finishes its step first, instead of dying in the middle."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# Batch systems send SIGTERM to cancel a job, and SIGUSR1 before they pre-empt it.
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class Interruption:
    """Tells whether a signal asked the process to stop, and which one."""

    _noted: str | None = None

    @property
    def signal_name(self) -> str | None:
        """The name of the signal that asked for a stop so far, or None."""
        waiting = signal.sigpending() & set(SIGNALS)
        return min(waiting).name if waiting else self._noted

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._noted = signal.Signals(number).name


@contextmanager
def catch_interruption() -> Iterator[Interruption]:
    """Block the signals of `SIGNALS` during the block, so that the process can poll for them.

    Enter it before numpy and torch are imported, because the threads that they start have to block
    the signals, too. Handlers alone would not do: to call one, the system writes below the stack
    pointer, which some matrix products of oneDNN (before its change 4855) let point into the heap.
    """
    interruption = Interruption()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    # A thread that was started earlier may still receive the signal.
    previous = {number: signal.signal(number, interruption._note) for number in SIGNALS}
    try:
        yield interruption
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in previous.items():
            signal.signal(number, handler)
