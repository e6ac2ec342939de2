"""The machine that the benchmark measures, and the clock that it uses."""

import platform
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch

from blocklora import __version__
from blocklora.errors import UserError
from blocklora.runs.device import device_name, require_device


@dataclass(frozen=True)
class Machine:
    """A device ("cpu" or "cuda") and a number of threads; if that is None, PyTorch chooses it."""

    device: str
    threads: int | None = None

    def prepare(self, precision: str) -> None:
        """Set up this process to compute in a precision.

        Raises:
            UserError: The device is not available or cannot compute in the precision.
        """
        require_device(self.device, precision)
        if self.threads is not None:
            torch.set_num_threads(self.threads)

    def can_compute_in(self, precision: str) -> bool:
        """Return whether the device is available and can compute in a precision."""
        try:
            require_device(self.device, precision)
        except UserError:
            return False
        return True

    def seconds(self, work: Callable[[], object], repeats: int = 1) -> float:
        """Return the mean seconds of `repeats` calls of `work`, until the device finishes them."""
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
    """Return the facts about the machine and the measurement that a report states."""
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
