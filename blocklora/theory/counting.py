"""A counter of floating-point operations that knows all products of the fast engine."""

import torch
from torch.utils.flop_counter import FlopCounterMode

FLASH = "_scaled_dot_product_flash_attention"


def flop_counter() -> FlopCounterMode:
    """Return PyTorch's counter, extended by an in-place product and those that only CPUs use."""
    aten, mkldnn = torch.ops.aten, torch.ops.mkldnn
    own = {}
    if hasattr(mkldnn, "_linear_pointwise"):
        own[mkldnn._linear_pointwise] = lambda x, weight, *_, **__: 2 * x[0] * x[1] * weight[0]
    counter = FlopCounterMode(display=False, custom_mapping=own)
    for name, same in (
        ("addmm_", "addmm"),
        (f"{FLASH}_for_cpu", FLASH),
        (f"{FLASH}_for_cpu_backward", f"{FLASH}_backward"),
    ):
        counter.flop_registry[getattr(aten, name)] = counter.flop_registry[getattr(aten, same)]
    return counter
