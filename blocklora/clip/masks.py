"""Dropout masks of the low-rank paths, one bit each.

The adapted matrices of a layer have masks of their own over the same input. Bit j of a byte says
whether matrix j keeps that input, so that a mask costs one byte per input for all matrices and
can be drawn before the step: a second pass over the same tokens (recomputation) sees the same
masks, and a test can hand them to another implementation.
"""

import torch
from torch import Tensor

_LEVELS = 2**16


def draw_masks(
    shape: tuple[int, ...],
    matrices: int,
    dropout: float,
    generator: torch.Generator | None = None,
    device: str | torch.device = "cpu",
) -> Tensor:
    """Return uint8 masks of `shape`; bit j is set with probability 1 − dropout.

    The probability is rounded to a multiple of 2^-16 (0.25 is exact).
    """
    masks = torch.zeros(shape, dtype=torch.uint8, device=device)
    flat = masks.view(-1)
    threshold = round(dropout * _LEVELS) - _LEVELS // 2
    # One 64-bit draw serves four elements.
    draws = torch.empty((flat.numel() + 3) // 4, dtype=torch.int64, device=device)
    for matrix in range(matrices):
        draws.random_(torch.iinfo(torch.int64).min, None, generator=generator)
        keep = draws.view(torch.int16)[: flat.numel()] >= threshold
        flat |= keep.view(torch.uint8) << matrix
    return masks


def kept(masks: Tensor, matrix: int) -> Tensor:
    """Return the boolean mask of one matrix: which inputs it keeps."""
    return (masks & (1 << matrix)) != 0
