"""What a family of backbones is: the answers to everything that the rest asks about a backbone.

A family is one module with one `Family`, listed in `blocklora/backbones/families.py`. The schema of
study files, their validation, digests, the theory and the workflow follow from it. Describing a
family imports nothing heavy.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Union

from blocklora.backbones.config import ClipConfig

if TYPE_CHECKING:
    from blocklora.miniature.settings import Settings

Drawing = Union["Settings", None]
"""The section `miniature` of a study, if it has one."""


@dataclass(frozen=True)
class Family:
    """A way to come by the weights of backbones.

    Attributes:
        sources: who provides the weights, in words, by the values of `source` in study files.
        command: the subcommand, and with `_` the rule, that writes the backbone file.
        code: the module whose code decides the weights.
        config: returns the shape of a backbone, by its name in the study.
        definition: returns what the weights depend on beside their name, their source and the code.
        names: returns the names that a source has; None where any name will do.
        published_as: returns the name in published tables, if their accuracies are comparable.
        drawn: True if the weights come from drawn images, which needs the section `miniature`.
    """

    sources: Mapping[str, str]
    command: str
    code: str
    config: Callable[[str, Drawing], ClipConfig]
    definition: Callable[[str, Drawing], Mapping[str, Any]]
    names: Callable[[str], tuple[str, ...]] | None = None
    published_as: Callable[[str], str | None] = lambda name: None
    drawn: bool = False
