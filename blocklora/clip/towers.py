"""The two transformers of CLIP with frozen weights, written for training adapters.

They compute what open_clip's modules compute, to rounding, and differ in what they spend:

- tokens of all sequences lie end to end, so that prompts of different lengths need no padding;
- q, k and v come from one frozen product, the updates from thin ones added in place of a dense
  ΔW; nothing of size d × d is made;
- frozen weights get no gradient, so no activation is kept that only such a gradient would need;
- the last block computes queries, output and MLP for the pooled token of each sequence alone,
  since nothing else of it is used.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from blocklora.adapters.adapter import Adapter
from blocklora.adapters.algebra import merge_arms, tile_down
from blocklora.adapters.merge import PREFIXES
from blocklora.clip.masks import kept
from blocklora.clip.prompts import PackedPrompts
from blocklora.clip.weights import Backbone

Groups = Sequence[tuple[int, int]]


@dataclass(frozen=True)
class LayerUpdate:
    """The low-rank paths of one layer, ready for thin products.

    Attributes:
        matrices: which of q, k, v, o are adapted.
        down: A over the full input, shape (matrices, inner, width).
        up: sum of the arms, shape (matrices, width, inner).
        scale: alpha / sqrt(rank).
        dropout: probability with which the masks zero an input.
    """

    matrices: tuple[str, ...]
    down: Tensor
    up: Tensor
    scale: float
    dropout: float


def layer_updates(
    adapter: Adapter | None, tower: str, layers: int, dtype: torch.dtype
) -> list[LayerUpdate | None]:
    """Return the update of each layer of a tower, None where there is none."""
    updates: list[LayerUpdate | None] = [None] * layers
    if adapter is None or tower not in adapter.towers:
        return updates
    config, factors = adapter.config, adapter.towers[tower]
    downs = tile_down(factors.down, config).to(dtype).unbind(0)
    ups = merge_arms(factors.up).to(dtype).unbind(0)
    for layer, (down, up) in enumerate(zip(downs, ups, strict=True), factors.first):
        updates[layer] = LayerUpdate(config.matrices, down, up, config.scale, config.dropout)
    return updates


class _MaskedDown(torch.autograd.Function):
    """(mask_j ⊙ x) A_jᵀ / (1 − p) for several j, keeping x and one byte per input."""

    @staticmethod
    def forward(ctx, x, down, masks, bits, keep):
        ctx.save_for_backward(x, down, masks)
        ctx.bits, ctx.keep = bits, keep
        products = [(x * kept(masks, bit)) @ a.T for bit, a in zip(bits, down, strict=True)]
        return torch.stack(products).div_(keep)

    @staticmethod
    def backward(ctx, gradient):
        x, down, masks = ctx.saved_tensors
        gradient = gradient / ctx.keep
        x_gradient = torch.zeros_like(x) if ctx.needs_input_grad[0] else None
        down_gradient = torch.empty_like(down)
        for index, bit in enumerate(ctx.bits):
            mask = kept(masks, bit)
            torch.mm(gradient[index].T, x * mask, out=down_gradient[index])
            if x_gradient is not None:
                x_gradient += (gradient[index] @ down[index]).mul_(mask)
        return x_gradient, down_gradient, None, None, None


class _QuickGelu(torch.autograd.Function):
    """x·sigmoid(1.702 x), keeping x alone."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.sigmoid(1.702 * x).mul_(x)

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        gate = torch.sigmoid(1.702 * x)
        return gradient * gate * (1 + 1.702 * x * (1 - gate))


@dataclass(frozen=True)
class _Block:
    ln_1: tuple[Tensor, Tensor]
    in_proj: tuple[Tensor, Tensor]
    out_proj: tuple[Tensor, Tensor]
    ln_2: tuple[Tensor, Tensor]
    c_fc: tuple[Tensor, Tensor]
    c_proj: tuple[Tensor, Tensor]


class Transformer:
    """Pre-norm residual attention blocks with frozen weights and low-rank updates."""

    def __init__(
        self, backbone: Backbone, tower: str, device: str | torch.device, dtype: torch.dtype
    ) -> None:
        """Take one tower's blocks from `backbone`, matrices in `dtype`, norms in fp32."""
        config = getattr(backbone.config, tower)
        self.layers, self.heads, self.dtype = config.layers, config.heads, dtype
        self.causal = tower == "text"
        self.quick_gelu = backbone.config.quick_gelu

        def pair(name: str, kind: torch.dtype) -> tuple[Tensor, Tensor]:
            # nn.MultiheadAttention names its input projection with an underscore.
            joint = "_" if name.endswith("in_proj") else "."
            weight, bias = (backbone.weights[f"{name}{joint}{part}"] for part in ("weight", "bias"))
            return weight.to(device, kind), bias.to(device, kind)

        self.blocks = []
        for layer in range(config.layers):
            at = f"{PREFIXES[tower]}.{layer}"
            self.blocks.append(
                _Block(
                    pair(f"{at}.ln_1", torch.float32),
                    pair(f"{at}.attn.in_proj", dtype),
                    pair(f"{at}.attn.out_proj", dtype),
                    pair(f"{at}.ln_2", torch.float32),
                    pair(f"{at}.mlp.c_fc", dtype),
                    pair(f"{at}.mlp.c_proj", dtype),
                )
            )

    def __call__(
        self,
        x: Tensor,
        groups: Groups,
        pooled: Tensor,
        updates: Sequence[LayerUpdate | None],
        masks: Tensor | None,
    ) -> Tensor:
        """Return the pooled tokens after the last block, shape (sequences, width).

        Args:
            x: input tokens of all sequences end to end, fp32, shape (tokens, width).
            groups: (sequences, length) of each run of sequences of one length, in order.
            pooled: index of the one token of each sequence whose output is wanted; in a causal
                tower it has to be the sequence's last.
            updates: of each layer.
            masks: dropout masks, uint8 (layers, tokens, width); None applies no dropout.
        """
        for layer, block in enumerate(self.blocks):
            last = layer == self.layers - 1
            x = self._block(
                x,
                block,
                groups,
                pooled if last else None,
                updates[layer],
                None if masks is None else masks[layer],
            )
        return x

    def _block(
        self,
        x: Tensor,
        block: _Block,
        groups: Groups,
        pooled: Tensor | None,
        update: LayerUpdate | None,
        masks: Tensor | None,
    ) -> Tensor:
        h = self._norm(x, block.ln_1)
        weight, bias = block.in_proj
        if pooled is None:
            q, k, v = _project(h, weight, bias, ("q", "k", "v"), update, masks)
        else:
            width = x.shape[1]
            k, v = _project(h, weight[width:], bias[width:], ("k", "v"), update, masks)
            masks = None if masks is None else masks[pooled]
            (q,) = _project(h[pooled], weight[:width], bias[:width], ("q",), update, masks)
            x = x[pooled]
        attended = self._attend(q, k, v, groups, pooled is not None)
        (out,) = _project(attended, *block.out_proj, ("o",), update, masks)
        x = x + out
        h = F.linear(self._norm(x, block.ln_2), *block.c_fc)
        h = _QuickGelu.apply(h) if self.quick_gelu else F.gelu(h)
        return x + F.linear(h, *block.c_proj)

    def _norm(self, x: Tensor, parameters: tuple[Tensor, Tensor]) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], *parameters).to(self.dtype)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, groups: Groups, pooled: bool) -> Tensor:
        """Attention within each sequence; with `pooled`, `q` has one token per sequence."""
        outputs, start, first = [], 0, 0
        for sequences, length in groups:
            stop, queries = start + sequences * length, 1 if pooled else length
            last = first + sequences * queries
            attended = F.scaled_dot_product_attention(
                self._split(q[first:last], queries),
                self._split(k[start:stop], length),
                self._split(v[start:stop], length),
                is_causal=self.causal and not pooled,
            )
            outputs.append(attended.transpose(1, 2).reshape(last - first, q.shape[1]))
            start, first = stop, last
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _split(self, x: Tensor, length: int) -> Tensor:
        """Return (sequences, heads, length, head width) of (sequences·length, width)."""
        return x.view(-1, length, self.heads, x.shape[1] // self.heads).transpose(1, 2)


def _project(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    names: tuple[str, ...],
    update: LayerUpdate | None,
    masks: Tensor | None,
) -> list[Tensor]:
    """Return W x + b + s·B(A(mask ⊙ x)) for the matrices `names` stacked in `weight`.

    Args:
        x: inputs, shape (tokens, width).
        weight: frozen rows of all `names`, shape (names · width, width).
        bias: frozen, shape (names · width,).
        names: which matrices `weight` stacks.
        update: of the layer, if it has one.
        masks: uint8 (tokens, width), or None for no dropout.

    Returns:
        One tensor (tokens, width) for each name.
    """
    parts = list(F.linear(x, weight, bias).unflatten(-1, (len(names), -1)).unbind(-2))
    adapted = [name for name in names if update is not None and name in update.matrices]
    if update is None or not adapted:
        return parts
    rows = [update.matrices.index(name) for name in adapted]
    whole = len(rows) == len(update.matrices)
    down = update.down if whole else update.down[rows]
    if masks is None or update.dropout == 0:
        inner = (x @ down.flatten(0, 1).T).unflatten(-1, down.shape[:2]).unbind(-2)
    else:
        inner = _MaskedDown.apply(x, down, masks, rows, 1 - update.dropout).unbind(0)
    for z, row, name in zip(inner, rows, adapted, strict=True):
        at = names.index(name)
        parts[at] = torch.addmm(parts[at], z, update.up[row].T, alpha=update.scale)
    return parts


class TextTower:
    """CLIP's text tower over packed prompts."""

    def __init__(
        self, backbone: Backbone, device: str | torch.device = "cpu", dtype=torch.float32
    ) -> None:
        weights = backbone.weights
        self.transformer = Transformer(backbone, "text", device, dtype)
        self.width = backbone.config.text.width
        self._tokens = weights["token_embedding.weight"]
        self._positions = weights["positional_embedding"]
        self._norm = weights["ln_final.weight"].to(device), weights["ln_final.bias"].to(device)
        self._projection = weights["text_projection"].to(device)
        self._device = device

    def embed(self, prompts: PackedPrompts) -> Tensor:
        """Return the embedded tokens, shape (tokens, width): frozen, so one time is enough."""
        tokens, positions = prompts.tokens.cpu(), prompts.positions.cpu()
        return (self._tokens.cpu()[tokens] + self._positions.cpu()[positions]).to(self._device)

    def __call__(
        self,
        embedded: Tensor,
        prompts: PackedPrompts,
        updates: Sequence[LayerUpdate | None],
        masks: Tensor | None = None,
    ) -> Tensor:
        """Return unnormalised fp32 text features, shape (prompts, embed_dim).

        `masks` is uint8 (layers, tokens, width).
        """
        x = self.transformer(embedded, prompts.groups, prompts.ends, updates, masks)
        return F.layer_norm(x, x.shape[-1:], *self._norm) @ self._projection


class VisionTower:
    """CLIP's vision transformer."""

    def __init__(
        self, backbone: Backbone, device: str | torch.device = "cpu", dtype=torch.float32
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
        updates: Sequence[LayerUpdate | None],
        masks: Tensor | None = None,
    ) -> Tensor:
        """Return unnormalised fp32 image features, shape (images, embed_dim).

        `images` is uint8 (images, size, size, 3); `masks` is uint8 (layers, tokens, width).
        """
        count = images.shape[0]
        with torch.no_grad():
            x = self._embed(images)
        pooled = torch.arange(count, device=x.device) * self.tokens
        x = self.transformer(x, [(count, self.tokens)], pooled, updates, masks)
        return F.layer_norm(x, x.shape[-1:], *self._post) @ self._projection

    def _embed(self, images: Tensor) -> Tensor:
        """Return the tokens before the first block, fp32, shape (images · tokens, width)."""
        pixels = (images.permute(0, 3, 1, 2).float() / 255 - self._mean) / self._std
        size = self._patch
        # Non-overlapping patches make the convolution one product.
        patches = pixels.unfold(2, size, size).unfold(3, size, size).permute(0, 2, 3, 1, 4, 5)
        patches = patches.flatten(3).flatten(1, 2).to(self._filters.dtype)
        x = F.linear(patches, self._filters).float()
        x = torch.cat([self._class.expand(len(x), 1, -1), x], 1) + self._positions
        return F.layer_norm(x, x.shape[-1:], *self._pre).flatten(0, 1)
