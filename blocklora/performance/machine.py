"""The machine that is measured, and how time is taken on it."""

import platform
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch

from blocklora import __version__
from blocklora.runs.device import device_name, require_device


@dataclass(frozen=True)
class Machine:
    """What computes: "cpu" or "cuda", and with how many threads (None: torch's own choice)."""

    device: str
    threads: int | None = None

    def prepare(self, precision: str) -> None:
        """Set this process up.

        Raises:
            UserError: the device is not there, or does not know the precision.
        """
        require_device(self.device, precision)
        if self.threads is not None:
            torch.set_num_threads(self.threads)

    def seconds(self, work: Callable[[], object], repeats: int = 1) -> float:
        """Return how long `work` takes on average of some repeats, waiting for the device."""
        self._wait()
        start = perf_counter()
        for _ in range(repeats):
            work()
        self._wait()
        return (perf_counter() - start) / repeats

    def _wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()


def facts(machine: Machine, rounds: int) -> dict[str, Any]:
    """Return what a report says of the machine and of the measurement."""
    return {
        "device": machine.device,
        "device_name": device_name(machine.device),
        "threads": torch.get_num_threads(),
        "rounds": rounds,
        "versions": {
            "Python": platform.python_version(),
            "PyTorch": torch.__version__,
            "blocklora": __version__,
        },
    }
