"""CUDA graphs: recording a whole training step on a GPU and launching it as one unit.

A training step of CLIP consists of thousands of small kernels, and launching one from Python often
takes longer than running it. A CUDA graph launches them all at once, but with fixed addresses:
inputs are copied to the recorded places, the graph is replayed, and the outputs are copied out.
"""

import logging
from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor

from blocklora.engine.memory import is_out_of_memory

Inputs = Sequence[Tensor | None]
Compute = Callable[..., tuple[Tensor, ...]]
Record = Callable[[Compute, Inputs], tuple[Callable[[], None], tuple[Tensor, ...]]]
"""Records a function of arguments at fixed addresses. Returns a function that replays it, and the
outputs that a replay writes to."""

WARM_UPS = 2  # calls before a function is recorded

logger = logging.getLogger(__name__)


class Recordings:
    """Records a function of tensors once for each set of shapes, and replays the recordings.

    The function must neither depend on values on the host nor draw random numbers. If recording
    fails for another reason than a lack of memory, the function is called directly from then on. It
    is an argument of each call and is not kept, so an engine that owns its recordings is freed
    without garbage collection.

    Attributes:
        works: True if the function was recorded, False if it could not be recorded, None before the
            first call.
    """

    def __init__(self, record: Record) -> None:
        self.works: bool | None = None
        self._record = record
        self._recordings: dict[
            tuple[torch.Size | None, ...], tuple[Inputs, Callable[[], None], tuple[Tensor, ...]]
        ] = {}

    def __call__(self, compute: Compute, *inputs: Tensor | None) -> tuple[Tensor, ...]:
        """Return `compute(*inputs)` in new tensors; `compute` has to be the same in every call.

        Raises:
            RuntimeError: Memory runs out while the function is recorded.
        """
        shapes = tuple(None if value is None else value.shape for value in inputs)
        if self.works is not False and shapes not in self._recordings:
            places = [None if value is None else value.clone() for value in inputs]
            try:
                self._recordings[shapes] = (places, *self._record(compute, places))
                self.works = True
            except RuntimeError as error:
                if is_out_of_memory(error):
                    raise
                logger.warning(
                    "steps are slower, as they cannot be recorded as a CUDA graph: %s", error
                )
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
    """Records functions as CUDA graphs, which can share memory as only one runs at a time."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(
        self, compute: Compute, inputs: Inputs
    ) -> tuple[Callable[[], None], tuple[Tensor, ...]]:
        """Record `compute(*inputs)`; see `Record`."""
        stream, graph = _recording_stream(), torch.cuda.CUDAGraph()
        # Other threads pin memory for later batches meanwhile, which the default mode forbids.
        options = {"pool": self._pool, "stream": stream, "capture_error_mode": "thread_local"}
        with torch.cuda.stream(torch.cuda.current_stream()):  # restored even if recording fails
            # Libraries such as cuBLAS set themselves up in their first calls, which cannot be
            # recorded.
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(WARM_UPS):
                    compute(*inputs)
            torch.cuda.current_stream().wait_stream(stream)
            with torch.cuda.graph(graph, **options):
                outputs = compute(*inputs)
        return graph.replay, outputs


@cache
def _recording_stream() -> torch.cuda.Stream:
    """Return the stream of all recordings, as cuBLAS keeps workspaces for each stream for good."""
    return torch.cuda.Stream()
