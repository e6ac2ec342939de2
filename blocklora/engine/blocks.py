"""A pre-norm attention block with frozen weights, as two functions with handwritten gradients.

PyTorch's attention runs between the two. For each token, the two residual inputs, q, k, v, the
output of the attention, and the hidden layer of the MLP before its activation are kept for the
backward pass: ten times the width. The outputs of norms and activations are computed again, which
only costs another pass over memory.

QuickGELU is x·sigmoid(a x) = silu(a x)/a with a = 1.702, so PyTorch's fused SiLU computes it from a
hidden layer that is scaled by a. The scale is folded into the weight and bias of the second norm,
the MLP's biases, and the factor of the residual sum.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from blocklora.engine.products import Adapted, Paths, input_gradient, product

QUICK_GELU = 1.702
EPSILON = 1e-5

Groups = Sequence[tuple[int, int]]
"""(sequences, length) of each group of consecutive sequences of one length, in order."""


@dataclass(frozen=True)
class Norm:
    """A layer norm with frozen fp32 weight and bias and output in `dtype`."""

    weight: Tensor
    bias: Tensor
    dtype: torch.dtype

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the normalised x, and each token's mean and reciprocal standard deviation."""
        result = torch.native_layer_norm(x, x.shape[-1:], self.weight, self.bias, EPSILON)
        return result[0].to(self.dtype), result[1], result[2]

    def backward(self, gradient: Tensor, x: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
        """Return the gradient of x in fp32; `mean` and `deviation` are those from `forward`."""
        return torch.ops.aten.native_layer_norm_backward(
            gradient.to(x.dtype),
            x,
            x.shape[-1:],
            mean,
            deviation,
            self.weight,
            self.bias,
            [True, False, False],
        )[0]


@dataclass(frozen=True)
class Block:
    """The frozen weights of a block; matrices and their biases are in the compute dtype.

    Attributes:
        heads: Number of attention heads.
        norms: The norms before the attention and before the MLP.
        qkv, q, kv: The input projections; q and kv are views of qkv.
        output: The output projection of the attention.
        hidden, residual: Weight and bias of the MLP's first and second layer.
        quick: True if the activation is QuickGELU; then the second norm and the MLP's biases are
            scaled.
    """

    heads: int
    norms: tuple[Norm, Norm]
    qkv: Adapted
    q: Adapted
    kv: Adapted
    output: Adapted
    hidden: tuple[Tensor, Tensor]
    residual: tuple[Tensor, Tensor]
    quick: bool

    @property
    def residual_scale(self) -> float:
        """The factor of the MLP's output in the sum with the residual input."""
        return 1 / QUICK_GELU if self.quick else 1.0

    def __call__(
        self,
        x: Tensor,
        groups: Groups,
        causal: bool,
        pooled: Tensor | None = None,
        paths: Paths | None = None,
    ) -> Tensor:
        """Return the block's output for every token, or only for the `pooled` tokens.

        It is fp32 and has the shape (tokens, width) or (sequences, width).

        Args:
            x: Tokens of all sequences end to end, fp32, shape (tokens, width).
            groups: The number and length of the sequences.
            causal: True if tokens do not attend to later tokens.
            pooled: Index of one token of each sequence, which must be the last one if `causal`.
            paths: The low-rank paths of the layer, if it has any.
        """
        heads = iter(_Heads.apply(x, *_factors(paths, "qkv"), paths, self, groups, pooled))
        attended = [
            F.scaled_dot_product_attention(q, k, v, is_causal=causal and pooled is None)
            for q, k, v in zip(heads, heads, heads, strict=True)
        ]
        if pooled is not None:
            x = x[pooled]
            paths = None if paths is None else paths.at(pooled)
        return _Rest.apply(x, *_factors(paths, "o"), paths, self, *attended)


def _factors(paths: Paths | None, names: str) -> tuple[Tensor | None, Tensor | None]:
    """Return the factors if any of `names` is adapted, so autograd sees only factors in use."""
    if paths is None or not paths.rows(names):
        return None, None
    return paths.down, paths.up


class _Heads(torch.autograd.Function):
    """The first norm and the input projections, from x to q, k and v of each group in turn.

    Each of them has the shape (sequences, heads, length, head width).
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        down: Tensor | None,
        up: Tensor | None,
        paths: Paths | None,
        block: Block,
        groups: Groups,
        pooled: Tensor | None,
    ) -> tuple[Tensor, ...]:
        h, *moments = block.norms[0].forward(x)
        if pooled is None:
            qkv, inner = block.qkv.forward(h, paths)
            inner_q = None
            parts = qkv.chunk(3, 1)
        else:
            kv, inner = block.kv.forward(h, paths)
            at = None if paths is None else paths.at(pooled)
            q, inner_q = block.q.forward(h[pooled], at)
            parts = q, *kv.chunk(2, 1)
        ctx.save_for_backward(x, *moments, pooled, inner, inner_q, *_tensors(paths))
        ctx.block, ctx.groups = block, groups
        ctx.matrices = None if paths is None else paths.matrices
        queries = groups if pooled is None else [(count, 1) for count, _ in groups]
        split = [
            _split(part, sizes, block.heads)
            for part, sizes in zip(parts, (queries, groups, groups), strict=True)
        ]
        return tuple(tensor for group in zip(*split, strict=True) for tensor in group)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, deviation, pooled, inner, inner_q, *tensors = ctx.saved_tensors
        block, groups, into_x = ctx.block, ctx.groups, ctx.needs_input_grad[0]
        paths = _paths(ctx.matrices, tensors)
        h = None if inner is None and inner_q is None else block.norms[0].forward(x)[0]
        if pooled is None:
            stacked = _join([gradients[i::3] for i in range(3)], groups)
            into_h, factors = block.qkv.backward(stacked, h, paths, inner, into_x)
        else:
            stacked = _join([gradients[1::3], gradients[2::3]], groups)
            into_h, factors = block.kv.backward(stacked, h, paths, inner, into_x)
            stacked = _join([gradients[0::3]], [(count, 1) for count, _ in groups])
            at = None if paths is None else paths.at(pooled)
            h = None if h is None else h[pooled]
            into_pooled, more = block.q.backward(stacked, h, at, inner_q, into_x)
            if into_h is not None:
                into_h.index_add_(0, pooled, into_pooled)
            factors |= more
        if into_h is not None:
            into_h = block.norms[0].backward(into_h, x, mean, deviation)
        return into_h, *_stack(factors, paths), None, None, None, None


class _Rest(torch.autograd.Function):
    """The rest of the block, from x and the attended values of each group to its output."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        down: Tensor | None,
        up: Tensor | None,
        paths: Paths | None,
        block: Block,
        *attended: Tensor,
    ) -> Tensor:
        joined = _join([attended], [(a.shape[0], a.shape[2]) for a in attended])
        output, inner = block.output.forward(joined, paths)
        middle = x + output
        h, *moments = block.norms[1].forward(middle)
        hidden = product(h, *block.hidden)
        needed = None if inner is None else joined
        ctx.save_for_backward(middle, *moments, hidden, needed, inner, *_tensors(paths))
        ctx.block, ctx.shapes = block, [(a.shape[0], a.shape[2]) for a in attended]
        ctx.matrices = None if paths is None else paths.matrices
        activate = F.silu if block.quick else F.gelu
        residual = product(activate(hidden), *block.residual)
        return torch.add(middle, residual, alpha=block.residual_scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        middle, mean, deviation, hidden, joined, inner, *tensors = ctx.saved_tensors
        block, paths = ctx.block, _paths(ctx.matrices, tensors)
        into_residual = (gradient * block.residual_scale).to(hidden.dtype)
        into_hidden = input_gradient(into_residual, block.residual[0])
        aten = torch.ops.aten
        activation_backward = aten.silu_backward if block.quick else aten.gelu_backward
        activation_backward.grad_input(into_hidden, hidden, grad_input=into_hidden)
        into_h = input_gradient(into_hidden, block.hidden[0])
        into_x = block.norms[1].backward(into_h, middle, mean, deviation)
        into_x += gradient
        into_joined, factors = block.output.backward(
            into_x.to(hidden.dtype), joined, paths, inner, any(ctx.needs_input_grad[5:])
        )
        into_attended: Sequence[Tensor | None] = [None] * len(ctx.shapes)
        if into_joined is not None:
            into_attended = _split(into_joined, ctx.shapes, block.heads)
        wanted = into_x if ctx.needs_input_grad[0] else None
        return wanted, *_stack(factors, paths), None, None, *into_attended


def _split(x: Tensor, groups: Groups, heads: int) -> list[Tensor]:
    """View x (tokens, width) as one tensor (sequences, heads, length, head width) per group."""
    parts = x.split([count * length for count, length in groups])
    return [
        part.view(count, length, heads, x.shape[1] // heads).transpose(1, 2)
        for part, (count, length) in zip(parts, groups, strict=True)
    ]


def _join(parts: Sequence[Sequence[Tensor]], groups: Groups) -> Tensor:
    """Join parts, each with one tensor per group as in `_split`, to (tokens, parts · width)."""
    heads, width = parts[0][0].shape[1], parts[0][0].shape[1] * parts[0][0].shape[3]
    if len(parts) == len(groups) == 1:
        return parts[0][0].transpose(1, 2).reshape(-1, width)
    tokens = sum(count * length for count, length in groups)
    joined = parts[0][0].new_empty(tokens, len(parts) * width)
    for part, columns in zip(parts, joined.chunk(len(parts), 1), strict=True):
        for source, target in zip(part, _split(columns, groups, heads), strict=True):
            target.copy_(source)
    return joined


def _tensors(paths: Paths | None) -> tuple[Tensor | None, ...]:
    if paths is None:
        return ()
    return paths.numbers, paths.down, paths.up, paths.masks


def _paths(matrices: tuple[str, ...] | None, tensors: Sequence[Tensor]) -> Paths | None:
    return None if matrices is None else Paths(matrices, *tensors)


def _stack(
    factors: dict[int, tuple[Tensor, Tensor]], paths: Paths | None
) -> tuple[Tensor | None, Tensor | None]:
    """Stack the gradients of all factors, which are zero for matrices without an entry.

    Both results are None if there is no entry at all.
    """
    if paths is None or not factors:
        return None, None
    zeros = torch.zeros_like(paths.down[0]), torch.zeros_like(paths.up[0])
    rows = [factors.get(row, zeros) for row in range(len(paths.matrices))]
    down, up = zip(*rows, strict=True)
    return torch.stack(down), torch.stack(up)
