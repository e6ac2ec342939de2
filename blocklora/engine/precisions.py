"""The floating-point precisions for matrix products, and the devices that support them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Precision:
    """A floating-point format.

    Attributes:
        dtype: The name of its torch dtype.
        on_cpu: True if it can be used on a CPU.
        scaled: True if the loss has to be scaled up before the backward pass, because small
            gradients would underflow otherwise.
    """

    dtype: str
    on_cpu: bool
    scaled: bool = False


PRECISIONS: Mapping[str, Precision] = {
    "fp32": Precision("float32", on_cpu=True),
    "bf16": Precision("bfloat16", on_cpu=True),
    "fp16": Precision("float16", on_cpu=False, scaled=True),
}
"""The precisions by their names in the configuration and on the command line."""


def dtype_of(precision: str) -> "torch.dtype":
    """Return the torch dtype of a precision."""
    import torch

    return getattr(torch, PRECISIONS[precision].dtype)
