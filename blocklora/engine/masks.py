"""Dropout masks of the low-rank paths, one bit each.

The adapted matrices of a layer have masks of their own over the same input. Bit j of a byte says
whether matrix j keeps that input, so that a mask costs one byte per input for all matrices and
can be drawn before the step: a second pass over the same tokens (recomputation) sees the same
masks, and a test can hand them to another implementation.
"""

import torch
from torch import Tensor

_BITS = 16


def draw_masks(
    shape: tuple[int, ...],
    dropout: float,
    generator: torch.Generator | None = None,
    device: str | torch.device = "cpu",
) -> Tensor:
    """Return uint8 masks of `shape`; each of the 8 bits is set with probability 1 − dropout.

    The probability is rounded to a multiple of 2^-16 (0.75 is exact). Its binary digits, from the
    last to the first, say how words of fair bits are combined: with x set with probability p,
    `x | fair` is set with (1 + p)/2 and `x & fair` with p/2. So 0.75 takes two fair bits.
    """
    size = torch.Size(shape).numel()
    words = torch.zeros((size + 7) // 8, dtype=torch.int64, device=device)
    fair = torch.empty_like(words)
    digits = f"{round((1 - dropout) * 2**_BITS):0{_BITS}b}".rstrip("0")
    for digit in reversed(digits):
        fair.random_(torch.iinfo(torch.int64).min, None, generator=generator)
        if digit == "1":
            words |= fair
        else:
            words &= fair
    return words.view(torch.uint8)[:size].view(shape)


def kept(masks: Tensor, matrices: Tensor) -> Tensor:
    """Return 1 where an input is kept and 0 where it is dropped, uint8 (matrices, *masks.shape).

    `matrices` holds the number of each wanted matrix, uint8 (matrices,).
    """
    return (masks >> matrices.view(-1, *[1] * masks.ndim)) & 1
