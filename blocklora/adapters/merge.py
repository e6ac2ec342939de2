"""Merging adapters into the weights of a CLIP model."""

from collections.abc import Mapping

from torch import Tensor

from blocklora.adapters.adapter import Adapter
from blocklora.backbones.shape import PREFIXES
from blocklora.errors import UserError


def merge(weights: Mapping[str, Tensor], adapter: Adapter) -> dict[str, Tensor]:
    """Return CLIP weights with all updates added, under the same (open_clip) names.

    Sums are computed in float64 and rounded once. `weights` does not change, so you can go back to
    the exact original. Tensors that have no update are shared with it.

    Raises:
        UserError: The adapter does not fit the model.
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
                f"the adapter's {name} is {tuple(update.shape)}, but the model's matrix is "
                f"{tuple(rows.shape)}, so the adapter was trained on another backbone"
            )
        rows.copy_(rows.double() + update.to(rows.device))
    return merged
