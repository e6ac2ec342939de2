"""Memory: what tensors need, counted operation by operation, and what a device has.

On fake tensors (`torch._subclasses.FakeTensorMode`) nothing is computed or allocated, so the
memory of a step on a GPU can be told on a machine without one. What is counted is what tensors
need; the allocator's rounding and the device's context come on top.
"""

import gc
import os
import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# What errors say that are no `torch.OutOfMemoryError`: of the CPU's allocator, of CUDA itself when
# something else than PyTorch's allocator asks for memory, and of cuBLAS.
OUT_OF_MEMORY = (
    "can't allocate memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)


class TensorMemory(TorchDispatchMode):
    """Counts the bytes of storages made within the block, and their largest sum at a time.

    Attributes:
        live_bytes: the total size of the storages that are alive.
        peak_bytes: the most `live_bytes` has been.
    """

    def __init__(self, present: Iterable[Tensor] = ()) -> None:
        """Start counting; `present` are tensors made before that count too."""
        super().__init__()
        self.live_bytes = self.peak_bytes = 0
        self._known: weakref.WeakKeyDictionary[Any, None] = weakref.WeakKeyDictionary()
        self._note(present)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Run one operation and note the storages of its results."""
        result = func(*args, **(kwargs or {}))
        self._note(tree_leaves(result))
        return result

    def _note(self, values: Iterable[Any]) -> None:
        for value in values:
            if not isinstance(value, Tensor):
                continue
            storage = value.untyped_storage()
            if storage in self._known:
                continue
            self._known[storage] = None
            size = storage.nbytes()
            self.live_bytes += size
            self.peak_bytes = max(self.peak_bytes, self.live_bytes)
            weakref.finalize(storage, self._release, size)

    def _release(self, size: int) -> None:
        self.live_bytes -= size


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
