"""The device a run computes on: never another one than asked for."""

import platform
import resource
import sys
from pathlib import Path

import torch

from blocklora.engine.precisions import PRECISIONS
from blocklora.errors import UserError


def require_device(device: str, precision: str) -> None:
    """Check that `device` ("cpu" or "cuda") is there and can compute in `precision`.

    Raises:
        UserError: it is not, or cannot.
    """
    if device == "cpu":
        if not PRECISIONS[precision].on_cpu:
            raise UserError(f"precision {precision} needs a GPU; use fp32 on the CPU")
        return
    if not torch.cuda.is_available():
        raise UserError(
            "device cuda was asked for, but PyTorch sees no CUDA GPU here; run on a machine with "
            "one, or set device: cpu in config.yaml"
        )
    if precision == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        name = torch.cuda.get_device_name()
        raise UserError(f"{name} does not compute in bf16; set precision: fp16 in config.yaml")


def device_name(device: str) -> str:
    """Return the name of the GPU or CPU."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(": ", 1)[1] for line in lines if line.startswith("model name"))
    except (OSError, StopIteration, IndexError):
        return platform.processor() or platform.machine()


def reset_peak_memory(device: str) -> None:
    """Start a new measurement of peak memory, where the device can."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()


def peak_memory(device: str) -> dict[str, int | None]:
    """Return the most memory held since the last reset, by the names of columns of runs.csv.

    `peak_memory_bytes` is that of tensors on a GPU, or resident in this process on a CPU, where it
    cannot be reset. `reserved_memory_bytes` is what PyTorch held on the GPU for them.
    """
    if device == "cuda":
        reserved = torch.cuda.max_memory_reserved()
        return {
            "peak_memory_bytes": torch.cuda.max_memory_allocated(),
            "reserved_memory_bytes": reserved,
        }
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak = kilobytes if sys.platform == "darwin" else 1024 * kilobytes
    return {"peak_memory_bytes": peak, "reserved_memory_bytes": None}
