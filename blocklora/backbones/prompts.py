"""Class prompts, and texts as the token ids that CLIP's text tower reads."""

from collections.abc import Iterable, Sequence
from functools import cache
from runpy import run_path
from typing import Any

from blocklora.backbones.config import open_clip_file
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


def prompt_tokens(classnames: Sequence[str], template: str, context_length: int) -> list[list[int]]:
    """Return the token ids of every class prompt.

    Raises:
        UserError: a prompt does not fit `context_length` tokens.
    """
    return tokenize(class_prompts(classnames, template), context_length)


@cache
def _tokenizer() -> Any:
    """Return open_clip's tokenizer from its own file: importing the package costs 4 s more."""
    return run_path(str(open_clip_file("tokenizer.py")))["SimpleTokenizer"]()
