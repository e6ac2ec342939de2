"""The algebra of LoRA and Block-LoRA, for one matrix or for stacks of them.

Every function takes factors with any number of leading dimensions (layers, matrices), so that a
whole tower is treated at once. Shapes below leave the leading ones out.

    down A: (inner, inputs)      up B: (arms, d_out, inner)

All three adapters are ΔW = (B_1 + … + B_arms)·tile(A): LoRA has one arm and A of full width; the
rank partition has n arms that share A; the input partition has one arm and A of width d_in/n,
repeated n times, which is B·A·(x_1 + … + x_n) for an input cut into n slices.
"""

from torch import Tensor

from blocklora.adapters.config import AdapterConfig


def merge_arms(up: Tensor) -> Tensor:
    """Return B_1 + … + B_arms, shape (d_out, inner): the arms only ever enter as this sum."""
    return up.sum(-3)


def tile_down(down: Tensor, config: AdapterConfig) -> Tensor:
    """Return A over the full input, shape (inner, d_in)."""
    return down if config.tiles == 1 else down.repeat(*[1] * (down.ndim - 1), config.tiles)


def delta(down: Tensor, up: Tensor, config: AdapterConfig) -> Tensor:
    """Return the dense ΔW, shape (d_out, d_in), without the scale alpha / sqrt(rank)."""
    return merge_arms(up) @ tile_down(down, config)
