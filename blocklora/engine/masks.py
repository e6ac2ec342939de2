"""Dropout masks for the low-rank paths, stored as one bit per matrix.

Each adapted matrix of a layer has its own mask over the same input. Bit j of a byte is set if
matrix j keeps that input, so the masks of all matrices together take one byte per input. That is
little enough to draw them before the step, so activations that are recomputed in the backward pass
see the same masks, and tests can pass the masks to another implementation.
"""

import torch
from torch import Tensor

_BITS = 16  # to which probabilities are rounded


def draw_masks(
    shape: tuple[int, ...],
    dropout: float,
    generator: torch.Generator | None = None,
    device: str | torch.device = "cpu",
) -> Tensor:
    """Return uint8 masks of `shape`; each of the 8 bits is set with probability 1 − dropout.

    The probability is rounded to a multiple of 2^-16 (0.75 is exact). Its binary digits, from last
    to first, decide how words of fair random bits are combined: if a bit x is set with probability
    p, then `x | fair` is set with (1 + p)/2 and `x & fair` with p/2. So 0.75 needs two fair bits.
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
    """Return 1 where a matrix keeps an input and 0 where it drops it.

    `matrices` are the numbers of the wanted matrices, uint8 (matrices,); the result is uint8
    (matrices, *masks.shape).
    """
    return (masks >> matrices.view(-1, *[1] * masks.ndim)) & 1
