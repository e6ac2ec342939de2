"""Products with frozen weights and their low-rank updates, each with a handwritten gradient.

These functions are not differentiable by autograd; `blocks.py` combines them into functions that
are. There are gradients of inputs and of low-rank factors only, so activations that only the
gradient of a frozen weight would need are never kept.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from blocklora.engine.masks import kept

# PyTorch multiplies fp32 matrices with MKL, which is half as fast as oneDNN on processors not made
# by Intel. torch.compile uses this operation, too, in the code it generates for CPUs.
_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x Wᵀ + b for x of shape (tokens, inputs)."""
    if _ONEDNN and x.dtype == torch.float32 and x.device.type == "cpu":
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return F.linear(x, weight, bias)


def input_gradient(gradient: Tensor, weight: Tensor) -> Tensor:
    """Return the gradient of `product` with respect to x, which is gradient · W."""
    return product(gradient, weight.T)


@dataclass(frozen=True)
class Paths:
    """The low-rank paths of one layer.

    Attributes:
        matrices: The adapted matrices among q, k, v and o.
        numbers: The bit of each matrix in `masks`, 0 to len(matrices) − 1, uint8.
        down: s/(1 − dropout) · A over the full input, shape (matrices, inner, width).
        up: The sum of the arms B, transposed, shape (matrices, inner, width).
        masks: Dropout masks of the inputs (`masks.py`), uint8 (tokens, width), or None.
    """

    matrices: tuple[str, ...]
    numbers: Tensor
    down: Tensor
    up: Tensor
    masks: Tensor | None = None

    def rows(self, names: str) -> list[int]:
        """Return the indices of those adapted matrices that are in `names`."""
        return [row for row, matrix in enumerate(self.matrices) if matrix in names]

    def inputs(self, x: Tensor, rows: Sequence[int]) -> Tensor:
        """Return x after the dropout of each of `rows`, shape (rows, tokens, width)."""
        if self.masks is None:
            return x.expand(len(rows), *x.shape)
        return x * self._kept(rows)

    def drop(self, gradients: Tensor, rows: Sequence[int]) -> Tensor:
        """Return the gradient of x from those of `inputs`, which may be overwritten: their sum."""
        if self.masks is not None:
            gradients *= self._kept(rows)
        return gradients.sum(0)

    def at(self, tokens: Tensor) -> "Paths":
        """Return the same paths for a selection of tokens."""
        masks = None if self.masks is None else self.masks[tokens]
        return Paths(self.matrices, self.numbers, self.down, self.up, masks)

    def _kept(self, rows: Sequence[int]) -> Tensor:
        assert self.masks is not None
        return kept(self.masks, _choose(self.numbers, rows))


@dataclass(frozen=True)
class Adapted:
    """Several projections stacked in one frozen weight, some of which have low-rank paths.

    Attributes:
        names: The stacked projections among q, k, v and o, in the order of the weight's rows.
        weight: Frozen, shape (len(names) · width, width).
        bias: Frozen, shape (len(names) · width,).
    """

    names: str
    weight: Tensor
    bias: Tensor

    def forward(self, x: Tensor, paths: Paths | None) -> tuple[Tensor, Tensor | None]:
        """Return the stacked outputs, and inner activations that `backward` needs.

        The outputs have the shape (tokens, len(names) · width). The inner activations are x, after
        dropout, times `paths.down`, shape (rows, tokens, inner). They are None if none of the
        projections has a low-rank path.
        """
        outputs = product(x, self.weight, self.bias)
        rows = [] if paths is None else paths.rows(self.names)
        if paths is None or not rows:
            return outputs, None
        inner = torch.bmm(paths.inputs(x, rows), _choose(paths.down, rows).mT)
        for z, row in zip(inner, rows, strict=True):
            self._part(outputs, paths.matrices[row]).addmm_(z, paths.up[row])
        return outputs, inner

    def backward(
        self,
        gradient: Tensor,
        x: Tensor | None,
        paths: Paths | None,
        inner: Tensor | None,
        into_input: bool,
    ) -> tuple[Tensor | None, dict[int, tuple[Tensor, Tensor]]]:
        """Return the gradients of x and of the low-rank factors.

        Args:
            gradient: The gradient of the stacked outputs.
            x: The input of `forward`; may be None if there are no low-rank paths.
            paths: As in `forward`.
            inner: The second result of `forward`.
            into_input: True to compute the gradient of x as well.

        Returns:
            The gradient of x, or None without `into_input`; and for each row the gradients of
            `paths.down[row]` and `paths.up[row]`.
        """
        into_x = input_gradient(gradient, self.weight) if into_input else None
        if x is None or paths is None or inner is None:
            return into_x, {}
        rows = paths.rows(self.names)
        parts = [self._part(gradient, paths.matrices[row]) for row in rows]
        into_inner = torch.stack(
            [part @ paths.up[row].T for part, row in zip(parts, rows, strict=True)]
        )
        into_down = torch.bmm(into_inner.mT, paths.inputs(x, rows))
        into_up = [z.T @ part for part, z in zip(parts, inner, strict=True)]
        if into_x is not None:
            into_x += paths.drop(torch.bmm(into_inner, _choose(paths.down, rows)), rows)
        return into_x, dict(zip(rows, zip(into_down, into_up, strict=True), strict=True))

    def _part(self, stacked: Tensor, name: str) -> Tensor:
        width = self.weight.shape[1]
        at = self.names.index(name) * width
        return stacked[:, at : at + width]


def _choose(stack: Tensor, rows: Sequence[int]) -> Tensor:
    """Return the given rows of a stack, without copying if these are all of them."""
    # Indexing with a list would copy the list to the device, which a CUDA graph cannot record.
    return stack if len(rows) == len(stack) else torch.stack([stack[row] for row in rows])
