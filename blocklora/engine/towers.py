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

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from blocklora.backbones.config import PREFIXES
from blocklora.backbones.model import Backbone
from blocklora.engine.blocks import QUICK_GELU, Block, Groups, Norm
from blocklora.engine.packing import PackedPrompts
from blocklora.engine.products import Adapted, Paths, product


@dataclass(frozen=True)
class Updates:
    """The low-rank updates of a tower: `down` and `up` have a tensor for each updated layer.

    `first` is the index of the first updated layer; the other fields are those of `Paths`.
    """

    first: int
    matrices: tuple[str, ...]
    numbers: Tensor
    down: Sequence[Tensor]
    up: Sequence[Tensor]

    def paths(self, layer: int, masks: Tensor | None) -> Paths | None:
        """Return the paths of a layer, or None if it is not updated.

        `masks` are the dropout masks, uint8 (updated layers, tokens, width).
        """
        row = layer - self.first
        if not 0 <= row < len(self.down):
            return None
        mask = None if masks is None else masks[row]
        return Paths(self.matrices, self.numbers, self.down[row], self.up[row], mask)


class Transformer:
    """Pre-norm residual attention blocks with frozen weights and low-rank updates."""

    def __init__(
        self, backbone: Backbone, tower: str, device: str | torch.device, dtype: torch.dtype
    ) -> None:
        """Take the blocks of a tower from `backbone`, with matrices in `dtype` and fp32 norms."""
        self.layers = getattr(backbone.config, tower).layers
        self.causal = tower == "text"
        self.blocks = [
            _take_block(backbone, tower, layer, device, dtype) for layer in range(self.layers)
        ]

    def __call__(
        self,
        x: Tensor,
        groups: Groups,
        pooled: Tensor,
        updates: Updates | None,
        masks: Tensor | None,
    ) -> Tensor:
        """Return the pooled tokens after the last block, shape (sequences, width).

        Args:
            x: input tokens of all sequences end to end, fp32, shape (tokens, width).
            groups: (sequences, length) of each group of sequences of one length, in order.
            pooled: index of the token of each sequence whose output is wanted; the last token of
                the sequence in a causal tower.
            updates: the updates of the tower, if it has any.
            masks: dropout masks, uint8 (updated layers, tokens, width); None applies no dropout.
        """
        for layer, block in enumerate(self.blocks):
            wanted = pooled if layer == self.layers - 1 else None
            paths = None if updates is None else updates.paths(layer, masks)
            x = block(x, groups, self.causal, wanted, paths)
        return x


def _take_block(
    backbone: Backbone, tower: str, layer: int, device: str | torch.device, dtype: torch.dtype
) -> Block:
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


class TextTower:
    """CLIP's text tower over packed prompts."""

    def __init__(
        self,
        backbone: Backbone,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        weights = backbone.weights
        self.transformer = Transformer(backbone, "text", device, dtype)
        self.width = backbone.config.text.width
        self._norm = weights["ln_final.weight"].to(device), weights["ln_final.bias"].to(device)
        self._projection = weights["text_projection"].to(device)

    def __call__(
        self,
        embedded: Tensor,
        prompts: PackedPrompts,
        updates: Updates | None = None,
        masks: Tensor | None = None,
    ) -> Tensor:
        """Return unnormalised fp32 text features, shape (prompts, embed_dim).

        `masks` is uint8 (updated layers, tokens, width).
        """
        x = self.transformer(embedded, prompts.groups, prompts.ends, updates, masks)
        return F.layer_norm(x, x.shape[-1:], *self._norm) @ self._projection


class VisionTower:
    """CLIP's vision transformer."""

    def __init__(
        self,
        backbone: Backbone,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        weights, config = backbone.weights, backbone.config
        self.transformer = Transformer(backbone, "vision", device, dtype)
        self.width = config.vision.width
        self.tokens = (config.image_size // config.patch_size) ** 2 + 1
        self._patch = config.patch_size

        def take(name: str) -> Tensor:
            return weights[f"visual.{name}"].to(device)

        self._filters = take("conv1.weight").flatten(1).to(dtype)
        self._class, self._positions = take("class_embedding"), take("positional_embedding")
        self._pre = take("ln_pre.weight"), take("ln_pre.bias")
        self._post = take("ln_post.weight"), take("ln_post.bias")
        self._projection = take("proj")
        self._mean = torch.tensor(config.mean, device=device).view(3, 1, 1)
        self._std = torch.tensor(config.std, device=device).view(3, 1, 1)

    def __call__(
        self,
        images: Tensor,
        updates: Updates | None = None,
        masks: Tensor | None = None,
    ) -> Tensor:
        """Return unnormalised fp32 image features, shape (images, embed_dim).

        `images` is uint8 (images, size, size, 3); `masks` is uint8 (updated layers, tokens, width).
        """
        count = images.shape[0]
        with torch.no_grad():
            x = self._embed(images)
        pooled = torch.arange(count, device=x.device) * self.tokens
        x = self.transformer(x, [(count, self.tokens)], pooled, updates, masks)
        return F.layer_norm(x, x.shape[-1:], *self._post) @ self._projection

    def _embed(self, images: Tensor) -> Tensor:
        """Return the tokens before the first block, fp32, shape (images · tokens, width)."""
        # Patches do not overlap, so the convolution is a single matrix product.
        patches = images.unfold(1, self._patch, self._patch).unfold(2, self._patch, self._patch)
        pixels = (patches.flatten(1, 2).float() / 255 - self._mean) / self._std
        x = product(pixels.flatten(2).flatten(0, 1).to(self._filters.dtype), self._filters).float()
        x = x.unflatten(0, (len(images), -1))
        x = torch.cat([self._class.expand(len(x), 1, -1), x], 1) + self._positions
        return F.layer_norm(x, x.shape[-1:], *self._pre).flatten(0, 1)
