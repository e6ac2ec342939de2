"""Counting the operations of a training step, and the bytes that they read and write.

The step runs on fake tensors, so this needs neither a GPU nor time for arithmetic. On a GPU an
operation is about one kernel, and most kernels are expected to take as long as their bytes need.
Dropout masks are an exception: they are counted layer by layer, as a CPU makes them, while a GPU
makes those of all layers at once.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from blocklora.engine.fast import Chunks
from blocklora.engine.needs import Setting, counted_bytes
from blocklora.theory.counting import flop_counter

KINDS = ("products", "attention", "other")


class Traffic(TorchDispatchMode):
    """A context that counts operations on tensors by kind, one of `KINDS`.

    Views and allocations do no work and are not counted. Every input of an operation counts as read
    once, and every result as written once, also if it is written to the place of an input.

    Attributes:
        operations: Numbers of operations.
        bytes: Bytes that they read and write.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations, self.bytes = dict.fromkeys(KINDS, 0), dict.fromkeys(KINDS, 0)
        self._with_flops = flop_counter().flop_registry

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Run one operation and count it."""
        result = func(*args, **(kwargs or {}))
        read, written = _tensors((args, kwargs)), _tensors(result)
        if _works(func, read, written):
            kind = "other"
            if func._overloadpacket in self._with_flops:
                kind = "attention" if "attention" in func.__name__ else "products"
            self.operations[kind] += 1
            self.bytes[kind] += sum(map(extent, (*read, *written)))
        return result


def _tensors(values: object) -> list[Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]


def _works(func, read: list[Tensor], written: list[Tensor]) -> bool:
    """Return whether an operation computes or copies anything."""
    if func.__name__.startswith(("empty", "new_empty")):
        return False
    known = {tensor.untyped_storage()._cdata for tensor in read}
    new = any(tensor.untyped_storage()._cdata not in known for tensor in written)
    return new or func._schema.is_mutable


def extent(tensor: Tensor) -> int:
    """Return the bytes of a tensor's elements; those that it only repeats count once."""
    count = 1
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        count *= size if stride else min(size, 1)
    return count * tensor.element_size()


def count_step(setting: Setting, chunks: Chunks) -> tuple[int, Traffic]:
    """Return the floating-point operations that PyTorch counts in a step, and its traffic."""
    flops, traffic = flop_counter(), Traffic()

    @contextmanager
    def both() -> Iterator[None]:
        with flops, traffic:
            yield

    counted_bytes(setting, chunks, both())
    return flops.get_total_flops(), traffic
