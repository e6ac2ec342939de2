"""Packing of tokenised prompts without padding.

CLIP's text tower has causal attention and pools at the end-of-text token, so later tokens have no
effect: a prompt of 8 tokens needs 8 positions rather than the 77 of the context.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class PackedPrompts:
    """Distinct prompts laid end to end, shortest first.

    Attributes:
        tokens: Token ids, shape (tokens,).
        positions: Position of each token within its prompt, shape (tokens,).
        ends: Index of each prompt's end-of-text token, shape (prompts,).
        groups: (prompts, length) for each length, in order.
    """

    tokens: Tensor
    positions: Tensor
    ends: Tensor
    groups: tuple[tuple[int, int], ...]

    def to(self, device: str | torch.device) -> "PackedPrompts":
        """Return the same prompts with tensors on `device`."""
        tensors = (value.to(device) for value in (self.tokens, self.positions, self.ends))
        return PackedPrompts(*tensors, self.groups)


def pack(
    prompts: Sequence[Sequence[int]], tokens_per_chunk: int | None = None
) -> tuple[list[PackedPrompts], Tensor]:
    """Pack the distinct prompts into chunks, and return the chunks and the row of each prompt.

    Equal prompts (two ImageNet classes are called "missile") are kept once. The rows, int64
    (prompts,), are numbered across all chunks. Without `tokens_per_chunk` there is a single chunk.
    Otherwise each chunk holds as many prompts as fit, but at least one, and the first chunk takes
    the rest.
    """
    unique = sorted(dict.fromkeys(tuple(prompt) for prompt in prompts), key=len)
    chunks: list[list[tuple[int, ...]]] = [[]]
    size = 0
    for prompt in reversed(unique):
        if tokens_per_chunk and chunks[0] and size + len(prompt) > tokens_per_chunk:
            chunks.insert(0, [])
            size = 0
        chunks[0].insert(0, prompt)
        size += len(prompt)
    row = {prompt: index for index, prompt in enumerate(unique)}
    rows = torch.tensor([row[tuple(prompt)] for prompt in prompts])
    return [_lay_out(chunk) for chunk in chunks], rows


def _lay_out(prompts: Sequence[tuple[int, ...]]) -> PackedPrompts:
    lengths = [len(prompt) for prompt in prompts]
    groups = tuple((lengths.count(length), length) for length in sorted(set(lengths)))
    return PackedPrompts(
        tokens=torch.tensor([token for prompt in prompts for token in prompt]),
        positions=torch.cat([torch.arange(length) for length in lengths]),
        ends=torch.tensor(lengths).cumsum(0) - 1,
        groups=groups,
    )
