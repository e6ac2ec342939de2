"""The device a run computes on: never another one than asked for."""

import gc
import os
import platform
import resource
import sys
from pathlib import Path

import torch

from blocklora.errors import UserError

# What errors say that are no `torch.OutOfMemoryError`: of the CPU's allocator, of CUDA itself when
# something else than PyTorch's allocator asks for memory, and of cuBLAS.
OUT_OF_MEMORY = (
    "can't allocate memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)


def require_device(device: str, precision: str) -> None:
    """Check that `device` ("cpu" or "cuda") is there and can compute in `precision`.

    Raises:
        UserError: it is not, or cannot.
    """
    if device == "cpu":
        if precision == "fp16":
            raise UserError("precision fp16 needs a GPU; use fp32 on the CPU")
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


def peak_memory_bytes(device: str) -> int:
    """Return the most memory held so far: allocated on the GPU, or resident in this process."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes if sys.platform == "darwin" else 1024 * kilobytes


def is_out_of_memory(error: RuntimeError) -> bool:
    """Return whether an error of torch says that memory ran out, on the GPU or on the CPU.

    So does one that was raised because of such an error.
    """
    if isinstance(error.__context__, RuntimeError) and is_out_of_memory(error.__context__):
        return True
    message = str(error)
    return isinstance(error, torch.OutOfMemoryError) or any(
        sign in message for sign in OUT_OF_MEMORY
    )


def release_memory(device: str) -> None:
    """Free what nothing refers to any more, and give what the allocator keeps back to the GPU."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def free_bytes(device: str) -> int:
    """Return the bytes that are free on the GPU or, as the system estimates, in main memory.

    What is left of an earlier run on the GPU is released first, and what the allocator of this
    process still keeps without need counts as free.
    """
    if device == "cuda":
        release_memory(device)
        kept = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
        return torch.cuda.mem_get_info()[0] + kept
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        facts = dict(line.split(":", 1) for line in lines)
        return 1024 * int(facts["MemAvailable"].split()[0])
    except (OSError, KeyError):
        # Only Linux tells what is free; elsewhere all memory there is has to do.
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
