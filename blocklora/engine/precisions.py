"""The precisions in which products are computed, and where each can be used."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Precision:
    """A floating-point format.

    Attributes:
        dtype: its name in torch.
        on_cpu: True if it can be used on a CPU.
        scaled: True if small gradients vanish in it, so that the loss is scaled up before the
            backward pass.
    """

    dtype: str
    on_cpu: bool
    scaled: bool = False


PRECISIONS: Mapping[str, Precision] = {
    "fp32": Precision("float32", on_cpu=True),
    "bf16": Precision("bfloat16", on_cpu=True),
    "fp16": Precision("float16", on_cpu=False, scaled=True),
}
"""By the names that the configuration and the command line take."""


def dtype_of(precision: str) -> "torch.dtype":
    """Return the type of numbers of a precision."""
    import torch

    return getattr(torch, PRECISIONS[precision].dtype)
