"""Counting the memory that tensors need, and asking a device how much it has left.

Only tensors are counted, and neither the bytes that an allocator adds by rounding nor the context
of the device.
"""

import gc
import os
import weakref
from pathlib import Path

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Messages of out-of-memory errors that are not a `torch.OutOfMemoryError`: from the CPU's
# allocator, from CUDA when it allocates outside PyTorch's allocator, and from its libraries.
OUT_OF_MEMORY = (
    "can't allocate memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)

MORE_MEMORY = "let fewer jobs run at a time, or use a machine or a GPU with more memory"
"""The advice if even the smallest batches do not fit."""


class TensorMemory(TorchDispatchMode):
    """A context that counts the bytes of all tensor storages made within it.

    Attributes:
        live_bytes: Total size of the storages that are alive.
        peak_bytes: The maximum of `live_bytes` so far.
        sizes: The bytes of each storage, in the order of their allocation.
        events: The index in `sizes` of each storage that was made, or its bitwise complement when
            the storage was released.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live_bytes = self.peak_bytes = 0
        self.sizes: list[int] = []
        self.events: list[int] = []
        self._known: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Run one operation and note the storages of its results."""
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self._note(value.untyped_storage())
        return result

    def forget(self) -> None:
        """Start again with empty `sizes` and `events`, without the storages made so far."""
        self.sizes, self.events = [], []

    def _note(self, storage: torch.UntypedStorage) -> None:
        if storage in self._known:
            return
        self._known.add(storage)
        index, size = len(self.sizes), storage.nbytes()
        self.sizes.append(size)
        self.events.append(index)
        self.live_bytes += size
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)
        weakref.finalize(storage, self._release, index, size, self.events)

    def _release(self, index: int, size: int, events: list[int]) -> None:
        events.append(~index)
        self.live_bytes -= size


def is_out_of_memory(error: RuntimeError) -> bool:
    """Return whether an error, or the one that led to it, says that memory ran out."""
    if isinstance(error.__context__, RuntimeError) and is_out_of_memory(error.__context__):
        return True
    message = str(error)
    return isinstance(error, torch.OutOfMemoryError) or any(
        sign in message for sign in OUT_OF_MEMORY
    )


def release_memory(device: str) -> None:
    """Collect garbage, and return the allocator's unused memory to the GPU."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def free_bytes(device: str) -> int:
    """Return the free bytes of the GPU or, as estimated by Linux, of main memory.

    On a GPU, leftovers of earlier runs are released first, and memory that PyTorch's allocator has
    reserved but does not use counts as free. If this process may only use a share of the GPU, the
    rest of the GPU does not count. On systems other than Linux, all of main memory counts as free.
    """
    if device == "cuda":
        release_memory(device)
        reserved, allocated = torch.cuda.memory_reserved(), torch.cuda.memory_allocated()
        free, total = torch.cuda.mem_get_info()
        share = int(torch.cuda.get_per_process_memory_fraction() * total)
        return min(free + reserved, share) - allocated
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        facts = dict(line.split(":", 1) for line in lines)
        return 1024 * int(facts["MemAvailable"].split()[0])
    except (OSError, KeyError):
        # Only Linux has this file.
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
