"""The type `Family`, which describes where backbones come from and how they are made.

Each family is defined in a module of its own and listed in `blocklora/backbones/families.py`. The
schema of study files, their validation, digests, the theory and the workflow use its definition,
which should therefore import quickly.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Union

from blocklora.backbones.shape import ClipConfig

if TYPE_CHECKING:
    from blocklora.miniature.settings import Settings

Drawing = Union["Settings", None]
"""The section `miniature` of a study, or None if it has none."""


@dataclass(frozen=True)
class Family:
    """A way to obtain the weights of backbones.

    Attributes:
        sources: A name for people of each value of `source` in study files.
        command: The subcommand that writes the backbone file. With `_`, it is the rule's name.
        code: The module whose code decides the weights.
        config: Returns the configuration of a backbone by its name in the study.
        definition: Returns what the weights depend on besides their name, source and code.
        names: Returns the names of the backbones from a source. None if any name is allowed.
        published_as: Returns the name in published tables, if their accuracies are comparable.
        drawn: True if the weights come from drawn images, which need the section `miniature`.
    """

    sources: Mapping[str, str]
    command: str
    code: str
    config: Callable[[str, Drawing], ClipConfig]
    definition: Callable[[str, Drawing], Mapping[str, Any]]
    names: Callable[[str], tuple[str, ...]] | None = None
    published_as: Callable[[str], str | None] = lambda name: None
    drawn: bool = False
