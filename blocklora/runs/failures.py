"""Errors of PyTorch that are no fault of the code: memory runs out, or the GPU fails."""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from textwrap import shorten

from blocklora.errors import UserError

# Messages of CUDA and its libraries. All but a lack of memory leave a process without its GPU.
GPU_FAILED = re.compile(
    r"CUDA error|CUDA driver error|CUBLAS_STATUS|cuDNN error|CUDNN_STATUS|device is lost"
    r"|no CUDA-capable device"
)


class GpuFailedError(UserError):
    """The GPU has failed or is gone, so this process can compute nothing more on it."""


@contextmanager
def failures_explained(what: str = "") -> Iterator[None]:
    """Raise a lack of memory or a failed GPU in the block as an error of one line for the user.

    `what` is the work with a colon, such as "run <folder>: ". All other errors pass unchanged.

    Raises:
        GpuFailedError: The GPU has failed.
        UserError: Memory ran out.
    """
    try:
        yield
    except RuntimeError as error:
        if "torch" not in sys.modules:  # then it is none of PyTorch's errors
            raise
        from blocklora.engine.memory import MORE_MEMORY, is_out_of_memory

        said = shorten(str(error).partition("\n")[0], 200, placeholder=" …")
        if is_out_of_memory(error):
            raise UserError(f"{what}memory ran out ({said}); {MORE_MEMORY}") from None
        if GPU_FAILED.search(str(error)):
            raise GpuFailedError(
                f"{what}{_gpu_name()} failed ({said}); finished runs are kept; start the "
                "same command again on another GPU, or once this one works again"
            ) from None
        raise


def _gpu_name() -> str:
    import torch

    try:
        return torch.cuda.get_device_name()
    except (RuntimeError, AssertionError):  # it is gone
        return "the GPU"
