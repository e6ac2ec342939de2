"""The type `Family`, which describes one way to obtain backbones.

Each family is defined in a module of its own and listed in `blocklora/backbones/families.py`. That
module is imported whenever a study is read, so it should import nothing heavy.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Union

from blocklora.backbones.shape import ClipConfig

if TYPE_CHECKING:
    from blocklora.miniature.settings import Settings

MiniatureSettings = Union["Settings", None]
"""The settings in the section `miniature` of a study, or None if it has no such section."""


@dataclass(frozen=True)
class Family:
    """A way to obtain the weights of backbones.

    Attributes:
        sources: The values of `source` in study files, each with a readable name for messages.
        command: The subcommand that writes the backbone file. The workflow's rule has the same name
            with `_` instead of `-`.
        code: The full name of the module whose code decides the weights.
        config: Returns the configuration of a backbone, given its name and the settings of the
            miniature.
        definition: Returns the JSON values that decide the weights besides the name, the source and
            the code. It takes the same arguments as `config`.
        names: Returns the names of the backbones of a source. The field is None if any name is
            allowed.
        published_as: Returns the name of a backbone in published tables, or None if the accuracies
            there are not comparable.
        drawn: True if the weights come from drawn images, which need the section `miniature`.
    """

    sources: Mapping[str, str]
    command: str
    code: str
    config: Callable[[str, MiniatureSettings], ClipConfig]
    definition: Callable[[str, MiniatureSettings], Mapping[str, Any]]
    names: Callable[[str], tuple[str, ...]] | None = None
    published_as: Callable[[str], str | None] = lambda name: None
    drawn: bool = False
