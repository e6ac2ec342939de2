"""The device that a run computes on: setting it up, naming it, and measuring the cost of a run."""

import logging
import os
import platform
import re
import resource
import sys
import warnings
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from blocklora.engine.memory import release_memory
from blocklora.engine.precisions import PRECISIONS
from blocklora.errors import UserError
from blocklora.methods.base import Compute
from blocklora.runs.energy import energy_joules, energy_since
from blocklora.runs.gpu import VISIBLE, shown_gpus

logger = logging.getLogger(__name__)


class Meter:
    """Measures peak memory and energy on a device from when it is made."""

    def __init__(self, compute: Compute, resumed: bool = False) -> None:
        """Start to measure.

        The energy of a `resumed` fit is unknown, because earlier attempts drew a part of it.
        """
        self.device = compute.device
        self.started = datetime.now(UTC)
        reset_peak_memory(self.device)
        self._energy = None if resumed else energy_joules(self.device)

    def cost(self) -> dict[str, float | None]:
        """Return the peak memory in bytes and the energy in joules, by their columns in runs.csv.

        Unknown values are None.
        """
        energy = energy_since(self._energy, self.device)
        return {**peak_memory(self.device), "energy_joules": energy}

    def identity(self) -> dict[str, Any]:
        """Return the device, its name and the time of the start in UTC, for records."""
        return {
            "device_name": device_name(self.device),
            "device": self.device,
            "started": self.started.isoformat(timespec="seconds"),
        }


def require_device(device: str, precision: str, jobs: int = 1) -> None:
    """Check that `device` ("cpu" or "cuda") can compute in `precision`, and set it up.

    The device is never replaced by another one. If up to `jobs` processes may compute on the GPU at
    a time, this one may use 1/`jobs` of its memory.

    Raises:
        UserError: The device is not available or cannot compute in the precision.
    """
    if device == "cpu":
        if not PRECISIONS[precision].on_cpu:
            raise UserError(f"precision {precision} needs a GPU; use fp32 on the CPU")
        return
    name, capability = _name_and_capability()
    if capability < (oldest := _oldest_capability()):
        raise UserError(
            "{} has compute capability {}.{}, but PyTorch {} needs {}.{} or newer; run on another "
            "machine, or choose the device cpu (in config.yaml or by --device)".format(
                name, *capability, torch.__version__, *oldest
            )
        )
    if precision == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise UserError(
            f"{name} does not compute in bf16; choose the precision fp16 (in config.yaml or by "
            "--precision)"
        )
    if jobs > 1:
        torch.cuda.set_per_process_memory_fraction(1 / jobs)
        logger.info("up to %d jobs share %s, so this one uses 1/%d of its memory", jobs, name, jobs)
    _choose_kernels()


def _choose_kernels() -> None:
    """Choose among the ways in which CUDA's libraries can compute the same."""
    matmul = torch.backends.cuda.matmul
    # fp32 means 24 significant bits, and not the 11 of TF32.
    matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    # Gradients of A and B are sums over thousands of tokens. By default cuBLAS may split such a sum
    # and round its parts to 16 bits before it adds them.
    matmul.allow_bf16_reduced_precision_reduction = False
    matmul.allow_fp16_reduced_precision_reduction = False
    # The default attention of some GPUs. For a single query, as in the last block, its gradients
    # are reported to be NaN, and it compiles a plan for each shape.
    torch.backends.cuda.enable_cudnn_sdp(False)


def _name_and_capability() -> tuple[str, tuple[int, int]]:
    """Return the name and the compute capability of the GPU.

    Raises:
        UserError: PyTorch can use no GPU; the message says why.
    """
    with warnings.catch_warnings():
        # PyTorch warns of old drivers and GPUs, of which errors say more.
        warnings.simplefilter("ignore", UserWarning)
        try:
            if torch.cuda.is_available():
                return torch.cuda.get_device_name(), torch.cuda.get_device_capability()
            torch.cuda.init()
            reason = "it finds none"
        except (RuntimeError, AssertionError, torch.cuda.DeferredCudaCallError) as error:
            reason = " ".join(str(error).split())
    cpu = "choose the device cpu (in config.yaml or by --device)"
    if shown_gpus() == []:
        raise UserError(
            f"device cuda was asked for, but {VISIBLE}={os.environ[VISIBLE]} hides all GPUs; unset "
            f"it, or {cpu}"
        )
    shown = f" ({VISIBLE}={os.environ[VISIBLE]})" if VISIBLE in os.environ else ""
    if torch.version.cuda is None:
        raise UserError(
            f"device cuda was asked for, but PyTorch {torch.__version__} is built for no CUDA; "
            f"install a build for CUDA, or {cpu}"
        )
    raise UserError(
        f"device cuda was asked for, but PyTorch can use no GPU here{shown}: {reason}. PyTorch "
        f"{torch.__version__} is built for CUDA {torch.version.cuda}; update the driver, run on "
        f"another machine, or {cpu}"
    )


def _oldest_capability() -> tuple[int, int]:
    """Return the lowest compute capability that PyTorch is built for, or (0, 0) if unknown."""
    numbers = [re.fullmatch(r"sm_(\d+)(\d)a?", name) for name in torch.cuda.get_arch_list()]
    return min(((int(found[1]), int(found[2])) for found in numbers if found), default=(0, 0))


def device_name(device: str) -> str:
    """Return the name of the GPU or of the CPU."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(": ", 1)[1] for line in lines if line.startswith("model name"))
    except (OSError, StopIteration, IndexError):
        return platform.processor() or platform.machine()


def reset_peak_memory(device: str) -> None:
    """Start a new measurement of peak memory, if the operating system allows it."""
    if device == "cuda":
        release_memory(device)  # else what is kept for later would count as reserved
        torch.cuda.reset_peak_memory_stats()
        return
    with suppress(OSError):  # proc(5); elsewhere, the peak counts from the start of the process
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_memory(device: str) -> dict[str, int | None]:
    """Return the peak memory in bytes since the last reset, by its columns in runs.csv.

    On a GPU, `peak_memory_bytes` is the memory of tensors and workspaces, and
    `reserved_memory_bytes` is the memory that PyTorch reserved for them. On a CPU,
    `peak_memory_bytes` is the resident memory of this process, and `reserved_memory_bytes` is None.
    """
    if device == "cuda":
        peak, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
    else:
        kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        peak, reserved = kilobytes if sys.platform == "darwin" else 1024 * kilobytes, None
    return {"peak_memory_bytes": peak, "reserved_memory_bytes": reserved}
