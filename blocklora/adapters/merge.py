"""Adapters folded into plain weights."""

from collections.abc import Mapping

from torch import Tensor

from blocklora.adapters.adapter import Adapter
from blocklora.backbones.config import PREFIXES
from blocklora.errors import UserError


def merge(weights: Mapping[str, Tensor], adapter: Adapter) -> dict[str, Tensor]:
    """Return CLIP weights with every update added, under the same (open_clip) names.

    The sums are made in float64 and rounded once. Nothing in `weights` is changed, and tensors
    without an update are shared, so unmerging is exact: go on with `weights`.

    Raises:
        UserError: the model has no such attention matrix.
    """
    merged = dict(weights)
    for name, update in adapter.updates():
        tower, layer, matrix = name.split(".")
        kind = "out_proj.weight" if matrix == "o" else "in_proj_weight"
        key = f"{PREFIXES[tower]}.{layer}.attn.{kind}"
        if key not in merged:
            raise UserError(f"the model has no {key}, which the adapter's {name} updates")
        if merged[key] is weights[key]:
            merged[key] = merged[key].detach().clone()
        rows = merged[key] if matrix == "o" else merged[key].chunk(3)["qkv".index(matrix)]
        if rows.shape != update.shape:
            raise UserError(
                f"the adapter's {name} is {tuple(update.shape)} but the model's matrix is "
                f"{tuple(rows.shape)}: it was trained on another backbone"
            )
        rows.copy_(rows.double() + update.to(rows.device))
    return merged
