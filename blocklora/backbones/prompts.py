"""Making class prompts and the token ids that CLIP's text tower reads."""

from collections.abc import Iterable, Sequence
from functools import cache
from runpy import run_path
from typing import Any

from blocklora.backbones.shape import open_clip_file
from blocklora.errors import UserError


def class_prompts(classnames: Iterable[str], template: str) -> list[str]:
    """Return a prompt for each class, in which spaces replace the underscores of the class name.

    The template has `{}` in the place of the name. Source: MaxZanella/CLIP-LoRA@358f0d7:lora.py.
    """
    return [template.format(name.replace("_", " ")) for name in classnames]


def tokenize(texts: Sequence[str], context_length: int) -> list[list[int]]:
    """Return CLIP's token ids of each text, with start and end of text but without padding.

    Raises:
        UserError: A text has more than `context_length` tokens, which open_clip would silently cut.
    """
    tokenizer = _tokenizer()
    tokens = []
    for text in texts:
        ids = [tokenizer.sot_token_id, *tokenizer.encode(text), tokenizer.eot_token_id]
        if len(ids) > context_length:
            raise UserError(
                f"the prompt {text!r} has {len(ids)} tokens, but the text tower reads at most "
                f"{context_length}; shorten the class name or the template or, for a miniature, "
                "choose a larger context_length"
            )
        tokens.append(ids)
    return tokens


def prompt_tokens(classnames: Sequence[str], template: str, context_length: int) -> list[list[int]]:
    """Return the token ids of the class prompts; see `tokenize` for errors."""
    return tokenize(class_prompts(classnames, template), context_length)


@cache
def _tokenizer() -> Any:
    """Return open_clip's tokenizer by running its file, which is 4 s faster than an import."""
    return run_path(str(open_clip_file("tokenizer.py")))["SimpleTokenizer"]()
