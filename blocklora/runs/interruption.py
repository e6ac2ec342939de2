"""Signals that ask a run to stop, which it does after its current step instead of during it."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# Batch systems send SIGTERM to cancel a job, and SIGUSR1 before they pre-empt it.
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class Interruption:
    """Tells whether a signal has asked the process to stop, and which signal it was."""

    _noted: str | None = None

    @property
    def signal_name(self) -> str | None:
        """The name of a signal that has asked for a stop, or None if there was none."""
        waiting = signal.sigpending() & set(SIGNALS)
        return min(waiting).name if waiting else self._noted

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._noted = signal.Signals(number).name


@contextmanager
def catch_interruption() -> Iterator[Interruption]:
    """Hold back the signals in `SIGNALS` during the block, so that the process can poll for them.

    Enter it before numpy and torch are imported, because the threads that they start have to hold
    the signals back, too. Handlers alone are not enough: to call one, the operating system writes
    below the stack pointer, and in some matrix products of oneDNN (before its pull request 4855)
    the stack pointer points into the heap.
    """
    interruption = Interruption()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    # A thread that was started earlier may still receive a signal, which then calls the handler.
    previous = {number: signal.signal(number, interruption._note) for number in SIGNALS}
    try:
        yield interruption
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in previous.items():
            signal.signal(number, handler)
