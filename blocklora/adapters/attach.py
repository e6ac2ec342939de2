"""Adapters on open_clip modules, as plainly as the formula reads.

open_clip's attention is `torch.nn.MultiheadAttention`, which hands its weights to a fused kernel;
peft's adapter for it cannot leave out the output projection. Here the module is replaced by one
that computes the same attention from the same frozen tensors plus s·ΔW·dropout(x), with ΔW built
as a dense matrix. This is the reference that the fast towers are tested against, and a way to use
a trained adapter in one's own open_clip code.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from blocklora.adapters.adapter import Adapter, Factors
from blocklora.adapters.algebra import delta
from blocklora.adapters.config import AdapterConfig
from blocklora.backbones.config import PREFIXES
from blocklora.errors import UserError


def tower_shapes(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Return (layers, width) of each tower of an open_clip model.

    Raises:
        UserError: the model is not a CLIP with two transformers of `nn.MultiheadAttention`.
    """
    shapes = {}
    for tower, prefix in PREFIXES.items():
        try:
            blocks = model.get_submodule(prefix)
            attentions = [block.attn for block in blocks]
        except AttributeError:
            raise UserError(
                f"the model has no transformer at {prefix}: adapters need a CLIP whose "
                f"{tower} tower is a transformer (ResNet towers have no q, k, v)"
            ) from None
        for attention in attentions:
            if not isinstance(attention, nn.MultiheadAttention) or not attention.batch_first:
                raise UserError(
                    f"{prefix} uses {type(attention).__name__}, not a batch-first "
                    "nn.MultiheadAttention; install open_clip_torch 3.x"
                )
        shapes[tower] = (len(attentions), attentions[0].embed_dim)
    return shapes


class AdaptedAttention(nn.Module):
    """An `nn.MultiheadAttention` with low-rank updates, for self-attention.

    The frozen tensors are those of the attention it replaces, under the same names, so state
    dicts stay compatible. The factors belong to the `Adapter` and are not in the state dict.
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
        """Keep-masks (matrices, batch, length, width) to use instead of random dropout."""

    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
    ) -> tuple[Tensor, None]:
        """Return attention over `query`, shape (batch, length, width), and no weights.

        Raises:
            ValueError: it is used for cross-attention or asked for its weights.
        """
        if (key is not None and key is not query) or (value is not None and value is not query):
            raise ValueError("an adapted attention is a self-attention")
        if need_weights:
            raise ValueError("an adapted attention has no weights to return")
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
        """Return s·ΔW·dropout(x) of one matrix, 0 where it has no update."""
        if matrix not in self.config.matrices:
            return 0.0
        index = self.config.matrices.index(matrix)
        factors = self.factors.down[self.layer, index], self.factors.up[self.layer, index]
        if self.masks is None:
            x = F.dropout(x, self.config.dropout, self.training)
        else:
            x = x * self.masks[index] / (1 - self.config.dropout)
        return self.config.scale * F.linear(x, delta(*factors, self.config))


class Attachment:
    """An adapter in place on an open_clip model."""

    def __init__(self, model: nn.Module, adapter: Adapter) -> None:
        """Freeze `model` and put `adapter` on its attention layers.

        Raises:
            UserError: the adapter does not fit the model.
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
                    f"of width {factors.up.shape[3]}, the {tower} tower has {layers} layers of "
                    f"width {width}: it belongs to another backbone"
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
        """Put the model's own attention back, unfreeze what was, and return the model."""
        for block, attention in self._originals:
            block.attn = attention
        for parameter in self._trainable:
            parameter.requires_grad_()
        self.attentions.clear()
        self._originals.clear()
        return self.model
