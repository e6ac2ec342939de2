"""Class prompts as tokens, cut at their last needed one and packed without padding.

With causal attention and pooling at the end-of-text token, tokens behind it change nothing: a
prompt of 8 tokens needs 8, not the 77 of the context.
"""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from blocklora.errors import UserError


def class_prompts(classnames: Iterable[str], template: str) -> list[str]:
    """Return one prompt per class; underscores of the names become spaces.

    MaxZanella/CLIP-LoRA@358f0d7:lora.py.
    """
    return [template.format(name.replace("_", " ")) for name in classnames]


def tokenize(texts: Sequence[str], context_length: int) -> list[list[int]]:
    """Return CLIP's token ids of each text, from start to end of text, without padding.

    Raises:
        UserError: a text does not fit `context_length` tokens (open_clip would cut it silently).
    """
    tokenizer = _tokenizer()
    tokens = []
    for text in texts:
        ids = [tokenizer.sot_token_id, *tokenizer.encode(text), tokenizer.eot_token_id]
        if len(ids) > context_length:
            raise UserError(
                f"the prompt {text!r} has {len(ids)} tokens, more than the {context_length} of "
                "the text tower; shorten the class name or the template"
            )
        tokens.append(ids)
    return tokens


@cache
def _tokenizer() -> Any:
    """Return open_clip's tokenizer from its own file: importing the package costs 4 s more."""
    package = find_spec("open_clip")
    if package is None or package.origin is None:
        raise UserError("open_clip_torch is not installed")
    name = "blocklora_open_clip_tokenizer"
    spec = spec_from_file_location(name, Path(package.origin).with_name("tokenizer.py"))
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module.SimpleTokenizer()


@dataclass(frozen=True)
class PackedPrompts:
    """Different prompts laid end to end, shortest first.

    Attributes:
        tokens: ids, shape (tokens,).
        positions: of each token in its prompt, shape (tokens,).
        ends: index of each prompt's end-of-text token, shape (prompts,).
        groups: (prompts, length) of each run of prompts of one length, in order.
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
    """Return the different prompts packed in chunks, and for each given prompt its row.

    Equal prompts (two ImageNet classes are called "missile") are kept once. Rows count through
    the chunks in order. Without `tokens_per_chunk` there is one chunk; a chunk holds at least one
    prompt, and as many as fit but the first, which takes the rest.
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
