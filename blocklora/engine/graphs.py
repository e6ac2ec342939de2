"""Recording of a whole training step on a GPU, which is then launched as one piece.

A step of CLIP is thousands of small kernels, and starting each from Python takes longer than many
of them run. A CUDA graph holds them all with fixed addresses: inputs are copied to the recorded
places, the graph is replayed, and the outputs are copied out.
"""

import logging
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from blocklora.engine.memory import is_out_of_memory

Inputs = Sequence[Tensor | None]
Compute = Callable[..., tuple[Tensor, ...]]
Record = Callable[[Compute, Inputs], tuple[Callable[[], None], tuple[Tensor, ...]]]
"""Takes a function and its arguments, which stay where they are; returns what computes the
function again, and the outputs it writes to."""

WARM_UPS = 2

logger = logging.getLogger(__name__)


class Recordings:
    """Recordings of a function of tensors, one for each set of shapes, that are replayed.

    The function must not depend on values on the host, nor draw random numbers. Where recording
    fails, it is called as it is from then on. The function is an argument of each call and is not
    kept, so that whoever keeps its recordings is freed as soon as nothing else needs it.

    Attributes:
        works: True if the function was recorded, False if it could not be, None before the first
            call.
    """

    def __init__(self, record: Record) -> None:
        self.works: bool | None = None
        self._record = record
        self._recordings: dict[
            tuple[torch.Size | None, ...], tuple[Inputs, Callable[[], None], tuple[Tensor, ...]]
        ] = {}

    def __call__(self, compute: Compute, *inputs: Tensor | None) -> tuple[Tensor, ...]:
        """Return `compute(*inputs)`, as tensors of their own; `compute` is the same every time."""
        shapes = tuple(None if value is None else value.shape for value in inputs)
        if self.works is not False and shapes not in self._recordings:
            places = [None if value is None else value.clone() for value in inputs]
            try:
                self._recordings[shapes] = (places, *self._record(compute, places))
                self.works = True
            except RuntimeError as error:
                if is_out_of_memory(error):
                    raise
                logger.warning("the step cannot be recorded as a CUDA graph: %s", error)
                self.works = False
                self._recordings.clear()
        if not self.works:
            return compute(*inputs)
        places, replay, outputs = self._recordings[shapes]
        for place, value in zip(places, inputs, strict=True):
            if place is not None and value is not None:
                place.copy_(value, non_blocking=True)
        replay()
        return tuple(output.clone() for output in outputs)


class CudaGraphs:
    """Records functions as CUDA graphs that share their memory, since one runs at a time."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(
        self, compute: Compute, inputs: Inputs
    ) -> tuple[Callable[[], None], tuple[Tensor, ...]]:
        """Record `compute(*inputs)`; see `Record`."""
        # Libraries set themselves up in their first calls, which cannot be recorded.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                compute(*inputs)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # Other threads pin the memory of coming batches meanwhile, which only this mode allows.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            outputs = compute(*inputs)
        return graph.replay, outputs
