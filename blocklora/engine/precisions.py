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

AUTO = "auto"
"""The name in the configuration and on the command line for the precision of the device."""


def resolve_precision(precision: str, device: str) -> str:
    """Return the precision; "auto" becomes "fp16" on the device "cuda", and "fp32" on "cpu".

    Only the name of the device decides, because digests are also made on machines without a GPU.
    By NVIDIA's specifications, GPUs since Volta multiply matrices several times faster in fp16 than
    in fp32. Those that compute in bf16 do so at the same rate, but bf16 rounds OpenAI's weights,
    which are published in fp16, from 11 significant bits to 8. The smaller range of fp16 only
    matters for gradients, and scaling the loss keeps them in it.
    """
    if precision != AUTO:
        return precision
    return "fp16" if device == "cuda" else "fp32"


def dtype_of(precision: str) -> "torch.dtype":
    """Return the torch dtype of a precision."""
    import torch

    return getattr(torch, PRECISIONS[precision].dtype)
