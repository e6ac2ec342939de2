"""The device a run computes on: never another one than asked for."""

import os
import platform
import resource
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import torch

from blocklora.engine.precisions import PRECISIONS
from blocklora.errors import UserError

# CUDA 13, which the wheels of PyTorch that blocklora installs are built with, asks for these.
CUDA_13_DRIVER, CUDA_13_CAPABILITY = 580, (7, 5)


def require_device(device: str, precision: str) -> None:
    """Check that `device` ("cpu" or "cuda") is there and can compute in `precision`; set it up.

    Raises:
        UserError: it is not, or cannot.
    """
    if device == "cpu":
        if not PRECISIONS[precision].on_cpu:
            raise UserError(f"precision {precision} needs a GPU; use fp32 on the CPU")
        return
    if not torch.cuda.is_available():
        raise _unusable(_gpus_of_the_driver())
    name, capability = torch.cuda.get_device_name(), torch.cuda.get_device_capability()
    if _built_for_cuda_13() and capability < CUDA_13_CAPABILITY:
        raise _unusable("{}, compute capability {}.{}".format(name, *capability))
    if precision == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise UserError(f"{name} does not compute in bf16; set precision: fp16 in config.yaml")
    # Gradients of low-rank factors are sums over thousands of tokens. cuBLAS may split such a sum
    # and round its parts to 16 bits before they are added; they are to stay in fp32.
    matmul = torch.backends.cuda.matmul
    matmul.allow_bf16_reduced_precision_reduction = False
    matmul.allow_fp16_reduced_precision_reduction = False


def _built_for_cuda_13() -> bool:
    return (torch.version.cuda or "").startswith("13.")


def _gpus_of_the_driver() -> str:
    """Return what the NVIDIA driver says of its GPUs or of its own fault; "" if there is none."""
    for fields in ("name,driver_version,compute_cap", "name,driver_version"):  # old: not the last
        query = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
        try:
            answer = subprocess.run(query, capture_output=True, text=True, check=False, timeout=60)
        except (OSError, subprocess.TimeoutExpired):
            return ""
        if answer.returncode == 0:
            return "; ".join(map(_in_words, answer.stdout.splitlines()))
    said = " ".join((answer.stdout + answer.stderr).split())
    return "" if "No devices" in said else said


def _in_words(line: str) -> str:
    labels = ("", "driver ", "compute capability ")
    return ", ".join(map("".join, zip(labels, line.split(", "), strict=False)))


def _unusable(found: str) -> UserError:
    """Return the error for GPUs that PyTorch cannot use; `found` says which, "" that none is."""
    if not found:
        return UserError(
            "device cuda was asked for, but PyTorch sees no CUDA GPU here; run on a machine with "
            "one, or set device: cpu in config.yaml"
        )
    if torch.version.cuda is None:
        needed = "is built without CUDA: install one that is built with it"
    elif _built_for_cuda_13():
        needed = "needs driver {} and compute capability {}.{} or newer: update the driver".format(
            CUDA_13_DRIVER, *CUDA_13_CAPABILITY
        )
    else:
        needed = f"needs a driver and a GPU for CUDA {torch.version.cuda}: update the driver"
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    hidden = "" if shown is None else f" and CUDA_VISIBLE_DEVICES={shown}"
    return UserError(
        f"device cuda was asked for, but PyTorch cannot use what is here: found {found}{hidden}; "
        f"PyTorch {torch.__version__} {needed}, run on a machine with another GPU, or set "
        "device: cpu in config.yaml"
    )


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
        return
    with suppress(OSError):  # proc(5); elsewhere the peak is that of the process so far
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_memory(device: str) -> dict[str, int | None]:
    """Return the most memory held since the last reset, by the names of columns of runs.csv.

    `peak_memory_bytes` is that of tensors on a GPU, or resident in this process on a CPU.
    `reserved_memory_bytes` is what PyTorch held on the GPU for them.
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
