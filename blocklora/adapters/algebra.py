"""The formulas of LoRA and Block-LoRA, for single matrices or stacks of them.

The functions accept factors with any number of leading dimensions, such as (layers, matrices), so
they can process a whole tower at once. The shapes below omit these leading dimensions:

    down A: (inner, inputs)      up B: (arms, d_out, inner)

All adapters have the form ΔW = (B_1 + … + B_arms)·tile(A). LoRA has one arm, inner = r and
inputs = d_in. The rank partition has n arms that share A, and inner = r/n. The input partition has
one arm, and A has only inputs = d_in/n columns and is repeated n times, so ΔW x is
B·A·(x_1 + … + x_n) for an input x that is cut into n slices.
"""

from torch import Tensor

from blocklora.adapters.config import AdapterConfig


def merge_arms(up: Tensor) -> Tensor:
    """Return B_1 + … + B_arms, shape (d_out, inner); the update depends on this sum alone."""
    return up.sum(-3)


def tile_down(down: Tensor, config: AdapterConfig) -> Tensor:
    """Return A repeated to the full input width, shape (inner, d_in)."""
    return down if config.tiles == 1 else down.repeat(*[1] * (down.ndim - 1), config.tiles)


def delta(down: Tensor, up: Tensor, config: AdapterConfig) -> Tensor:
    """Return the dense ΔW, shape (d_out, d_in), without the scale alpha / sqrt(rank)."""
    return merge_arms(up) @ tile_down(down, config)
