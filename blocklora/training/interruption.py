"""Signals that ask a run to stop at the next step instead of dying in the middle of one."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# SIGTERM comes with a cancelled job, SIGUSR1 as a notice of pre-emption.
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class Interruption:
    """Whether, and by which signal, the process was asked to stop."""

    signal_name: str | None = None

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal_name = signal.Signals(number).name


@contextmanager
def catch_interruption() -> Iterator[Interruption]:
    """Note the signals of `SIGNALS` during the block instead of dying of them."""
    interruption = Interruption()
    previous = {number: signal.signal(number, interruption._note) for number in SIGNALS}
    try:
        yield interruption
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
