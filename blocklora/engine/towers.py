"""The two towers of CLIP with frozen weights, optimised for training adapters.

They compute the same as open_clip's modules, up to rounding, but at a lower cost:

- tokens of all sequences lie end to end, so prompts of different lengths need no padding;
- q, k and v come from one product with frozen weights, and updates are thin products, so no dense
  ΔW is ever computed (`products.py`);
- frozen weights get no gradient, so activations that only such gradients would need are not kept
  (`blocks.py`);
- the last block computes queries, output and MLP only for the pooled token of each sequence,
  because the other tokens are not used.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from blocklora.backbones.model import Backbone
from blocklora.backbones.shape import PREFIXES
from blocklora.engine.blocks import QUICK_GELU, Block, Groups, Norm
from blocklora.engine.packing import PackedPrompts
from blocklora.engine.products import Adapted, Paths, product

Updates = Mapping[int, Paths]
"""The low-rank paths of each updated layer by its index, without dropout masks."""
NO_UPDATES: Updates = {}


class _Tower:
    """A transformer with frozen weights and low-rank updates, a final norm and a projection.

    Attributes:
        name: "vision" or "text".
        norm, projection: open_clip's names of the final norm and the projection.
    """

    name: ClassVar[str]
    norm: ClassVar[str]
    projection: ClassVar[str]

    def __init__(
        self,
        backbone: Backbone,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Take the weights from `backbone`, the blocks' matrices in `dtype`, the norms in fp32."""
        shape = getattr(backbone.config, self.name)
        self.width, self.causal = shape.width, self.name == "text"
        self.blocks = [
            _take_block(backbone, self.name, layer, device, dtype) for layer in range(shape.layers)
        ]
        self._norm = [backbone.weights[f"{self.norm}.{x}"].to(device) for x in ("weight", "bias")]
        self._projection = backbone.weights[self.projection].to(device)

    def features(
        self, x: Tensor, groups: Groups, pooled: Tensor, updates: Updates, masks: Tensor | None
    ) -> Tensor:
        """Return unnormalised fp32 features, shape (sequences, embed_dim).

        Args:
            x: Input tokens of all sequences end to end, fp32, shape (tokens, width).
            groups: (sequences, length) of each group of sequences of one length, in order.
            pooled: Index of the token of each sequence whose output is wanted; the last token of
                the sequence in a causal tower.
            updates: The low-rank updates.
            masks: Dropout masks, uint8 (updated layers, tokens, width), in the order of `updates`;
                None applies no dropout.
        """
        masks_of = {} if masks is None else dict(zip(updates, masks, strict=True))
        for layer, block in enumerate(self.blocks):
            wanted = pooled if layer == len(self.blocks) - 1 else None
            paths = updates.get(layer)
            if layer in masks_of:
                paths = replace(paths, masks=masks_of[layer])
            x = block(x, groups, self.causal, wanted, paths)
        return F.layer_norm(x, x.shape[-1:], *self._norm) @ self._projection


def _take_block(
    backbone: Backbone, tower: str, layer: int, device: str | torch.device, dtype: torch.dtype
) -> Block:
    """Return a block of a tower, scaled for QuickGELU as `blocks.py` explains."""
    at, shape = f"{PREFIXES[tower]}.{layer}", getattr(backbone.config, tower)
    quick = backbone.config.quick_gelu
    scale = QUICK_GELU if quick else 1.0

    def take(name: str, kind: torch.dtype = dtype, scale: float = 1.0) -> Tensor:
        value = backbone.weights[f"{at}.{name}"]
        return (value if scale == 1.0 else value * scale).to(device, kind)

    def norm(name: str, scale: float) -> Norm:
        weight, bias = (take(f"{name}.{part}", torch.float32, scale) for part in ("weight", "bias"))
        return Norm(weight, bias, dtype)

    # nn.MultiheadAttention names its input projection with an underscore.
    weight, bias, width = take("attn.in_proj_weight"), take("attn.in_proj_bias"), shape.width
    return Block(
        heads=shape.heads,
        norms=(norm("ln_1", 1.0), norm("ln_2", scale)),
        qkv=Adapted("qkv", weight, bias),
        q=Adapted("q", weight[:width], bias[:width]),
        kv=Adapted("kv", weight[width:], bias[width:]),
        output=Adapted("o", take("attn.out_proj.weight"), take("attn.out_proj.bias")),
        hidden=(take("mlp.c_fc.weight"), take("mlp.c_fc.bias", dtype, scale)),
        residual=(take("mlp.c_proj.weight"), take("mlp.c_proj.bias", dtype, scale)),
        quick=quick,
    )


def embed_prompts(
    backbone: Backbone, prompts: PackedPrompts, device: str | torch.device = "cpu"
) -> Tensor:
    """Return the embedded tokens, fp32 (tokens, width) on `device`.

    Embeddings are frozen, so they are looked up only once, and their tables stay on the device of
    the backbone.
    """
    tokens = backbone.weights["token_embedding.weight"]
    positions = backbone.weights["positional_embedding"]
    rows = prompts.to(tokens.device)
    return (tokens[rows.tokens] + positions[rows.positions]).to(device)


class TextTower(_Tower):
    """CLIP's text tower over packed prompts."""

    name, norm, projection = "text", "ln_final", "text_projection"

    def __call__(
        self,
        embedded: Tensor,
        prompts: PackedPrompts,
        updates: Updates = NO_UPDATES,
        masks: Tensor | None = None,
    ) -> Tensor:
        """Return the features of the prompts; see `_Tower.features`."""
        return self.features(embedded, prompts.groups, prompts.ends, updates, masks)


class VisionTower(_Tower):
    """CLIP's vision transformer."""

    name, norm, projection = "vision", "visual.ln_post", "visual.proj"

    def __init__(
        self,
        backbone: Backbone,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(backbone, device, dtype)
        config = backbone.config
        self.tokens = config.vision_tokens
        self._patch = config.patch_size

        def take(name: str) -> Tensor:
            return backbone.weights[f"visual.{name}"].to(device)

        self._filters = take("conv1.weight").flatten(1).to(dtype)
        self._class, self._positions = take("class_embedding"), take("positional_embedding")
        self._pre = take("ln_pre.weight"), take("ln_pre.bias")
        self._mean = torch.tensor(config.mean, device=device).view(3, 1, 1)
        self._std = torch.tensor(config.std, device=device).view(3, 1, 1)

    def __call__(
        self, images: Tensor, updates: Updates = NO_UPDATES, masks: Tensor | None = None
    ) -> Tensor:
        """Return the features of uint8 images (images, size, size, 3); see `_Tower.features`."""
        count = images.shape[0]
        with torch.no_grad():
            x = self._embed(images)
        pooled = torch.arange(count, device=x.device) * self.tokens
        return self.features(x, [(count, self.tokens)], pooled, updates, masks)

    def _embed(self, images: Tensor) -> Tensor:
        """Return the tokens before the first block, fp32, shape (images · tokens, width)."""
        # Patches do not overlap, so the convolution is a single matrix product.
        patches = images.unfold(1, self._patch, self._patch).unfold(2, self._patch, self._patch)
        pixels = (patches.flatten(1, 2).float() / 255 - self._mean) / self._std
        x = product(pixels.flatten(2).flatten(0, 1).to(self._filters.dtype), self._filters).float()
        x = x.unflatten(0, (len(images), -1))
        x = torch.cat([self._class.expand(len(x), 1, -1), x], 1) + self._positions
        return F.layer_norm(x, x.shape[-1:], *self._pre).flatten(0, 1)
