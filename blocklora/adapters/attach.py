"""Attaching adapters to open_clip models, as a direct translation of the formula.

Use this to run a trained adapter in your own open_clip code. It is also the reference against which
the fast engine is tested.

open_clip's attention is a `torch.nn.MultiheadAttention`, which passes its weights to a fused
kernel, and peft's adapter for it cannot leave out the output projection. So we replace this module
with one that computes the same attention from the same frozen tensors and adds s·ΔW·dropout(x),
with ΔW as a dense matrix.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from blocklora.adapters.adapter import Adapter, Factors
from blocklora.adapters.algebra import delta
from blocklora.adapters.config import AdapterConfig
from blocklora.backbones.shape import PREFIXES
from blocklora.errors import UserError


def tower_shapes(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Return (layers, width) of each tower of an open_clip model.

    Raises:
        UserError: The model is not a CLIP with two transformers of `nn.MultiheadAttention`.
    """
    shapes = {}
    for tower, prefix in PREFIXES.items():
        try:
            blocks = model.get_submodule(prefix)
            attentions = [block.attn for block in blocks]
        except AttributeError:
            raise UserError(
                f"the model has no transformer at {prefix}, but adapters need a CLIP whose "
                f"{tower} tower is a transformer (a ResNet has no q, k and v)"
            ) from None
        for attention in attentions:
            if not isinstance(attention, nn.MultiheadAttention) or not attention.batch_first:
                raise UserError(
                    f"{prefix} uses {type(attention).__name__}, but adapters need a batch-first "
                    "nn.MultiheadAttention; detach the adapter that the model has, or install "
                    "open_clip_torch 3.x"
                )
        shapes[tower] = (len(attentions), attentions[0].embed_dim)
    return shapes


class AdaptedAttention(nn.Module):
    """A self-attention with low-rank updates that replaces an `nn.MultiheadAttention`.

    It uses the frozen tensors of the original under the same names, so state dicts stay
    compatible. The factors belong to the `Adapter` and are not in the state dict. `layer` is the
    position of the layer in the factors, which counts only adapted layers.
    """

    def __init__(
        self, attention: nn.MultiheadAttention, config: AdapterConfig, factors: Factors, layer: int
    ) -> None:
        super().__init__()
        self.in_proj_weight, self.in_proj_bias = attention.in_proj_weight, attention.in_proj_bias
        self.out_proj = attention.out_proj
        self.num_heads, self.batch_first = attention.num_heads, True
        self.config, self.factors, self.layer = config, factors, layer
        self.masks: Tensor | None = None
        """Masks that replace random dropout if they are set, (matrices, batch, length, width).

        A 1 keeps an input, and a 0 drops it.
        """

    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
    ) -> tuple[Tensor, None]:
        """Return the self-attention of `query`, and None in place of the attention weights.

        The query and the result have the shape (batch, length, width).

        Raises:
            ValueError: Cross-attention or the attention weights are requested.
        """
        if need_weights or any(x is not None and x is not query for x in (key, value)):
            raise ValueError("an adapted attention is a self-attention and returns no weights")
        q, k, v = (
            F.linear(query, weight, bias) + self._update(name, query)
            for name, weight, bias in zip(
                "qkv", self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3), strict=True
            )
        )
        heads = (x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for x in (q, k, v))
        x = F.scaled_dot_product_attention(*heads, attn_mask=attn_mask)
        x = x.transpose(1, 2).flatten(2)
        return self.out_proj(x) + self._update("o", x), None

    def _update(self, matrix: str, x: Tensor) -> Tensor | float:
        """Return s·ΔW·dropout(x) for one matrix, or 0 if it has no update."""
        if matrix not in self.config.matrices:
            return 0.0
        index = self.config.matrices.index(matrix)
        factors = self.factors.down[self.layer, index], self.factors.up[self.layer, index]
        if self.masks is None:
            x = F.dropout(x, self.config.dropout, self.training)
        else:
            x = x * self.masks[index].to(x.dtype) / (1 - self.config.dropout)
        # The model may be in another precision than the factors, which are fp32.
        return self.config.scale * F.linear(x, delta(*factors, self.config).to(x.dtype))


class Attachment:
    """An adapter that is attached to an open_clip model.

    Attributes:
        model: The model, whose adapted attention layers are replaced.
        adapter: The adapter.
        attentions: The new attention layers by their names, such as `vision.3`.
    """

    def __init__(self, model: nn.Module, adapter: Adapter) -> None:
        """Freeze `model` and attach `adapter` to its attention layers.

        Raises:
            UserError: The adapter does not fit the model.
        """
        self.model, self.adapter = model, adapter
        self.attentions: dict[str, AdaptedAttention] = {}
        self._originals: list[tuple[nn.Module, nn.MultiheadAttention]] = []
        shapes = tower_shapes(model)
        for tower, factors in adapter.towers.items():
            layers, width = shapes[tower]
            adapted = len(factors.down)
            if factors.first + adapted > layers or factors.up.shape[3] != width:
                raise UserError(
                    f"the adapter is for layers {factors.first} to {factors.first + adapted - 1} "
                    f"of width {factors.up.shape[3]}, but the {tower} tower has {layers} layers of "
                    f"width {width}, so the adapter belongs to another backbone"
                )
        self._trainable = [p for p in model.parameters() if p.requires_grad]
        model.requires_grad_(False)
        for tower, factors in adapter.towers.items():
            blocks = model.get_submodule(PREFIXES[tower])
            for layer in range(len(factors.down)):
                block = blocks[factors.first + layer]
                self._originals.append((block, block.attn))
                block.attn = AdaptedAttention(block.attn, adapter.config, factors, layer)
                block.attn.train(model.training)
                self.attentions[f"{tower}.{factors.first + layer}"] = block.attn

    def detach(self) -> nn.Module:
        """Restore the attention layers and `requires_grad` of the model, and return the model."""
        for block, attention in self._originals:
            block.attn = attention
        for parameter in self._trainable:
            parameter.requires_grad_()
        self.attentions.clear()
        self._originals.clear()
        return self.model
