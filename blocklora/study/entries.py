"""The entries of a study file: backbones, the user's own datasets, and methods."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cached_property, reduce
from operator import or_
from typing import Annotated, Any, get_type_hints

from pydantic import Field, PrivateAttr, create_model, model_validator

from blocklora.adapters.config import AdapterConfig
from blocklora.backbones.families import FAMILIES
from blocklora.backbones.family import Family
from blocklora.engine.recipe import Recipe
from blocklora.fields import Allowed, described, one_of, text, to_values
from blocklora.files import file_digest, folder_state, json_digest
from blocklora.methods import METHODS
from blocklora.validation import Section


@dataclass(frozen=True)
class BackboneSource:
    """The source of the weights of a backbone, such as "openai" or "miniature"."""

    source: one_of(*FAMILIES)

    @property
    def family(self) -> Family:
        """The family that the source belongs to."""
        return FAMILIES[self.source]


@dataclass(frozen=True)
class OwnDataset:
    """A dataset of the user's own, which is a folder of images.

    The labels of the images are the names of sub-folders, or are in a CSV file.

    Attributes:
        images: The path of the folder.
        csv: The path of the CSV file that lists images and labels; empty if there is none.
    """

    images: text("the path of a folder of images")
    csv: text("the path of a CSV file with the columns path, label, split") = ""

    @cached_property
    def state(self) -> str:
        """A digest of the content of the CSV file and of the names, sizes and times of the images.

        It changes whenever one of these files does. The file and the folder may be missing.
        """
        listed = file_digest(self.csv) if os.path.isfile(self.csv) else None
        return json_digest([folder_state(self.images), listed])

    def absent(self) -> Iterator[str]:
        """Yield a message if the folder is missing, and one if the CSV file is."""
        if not os.path.isdir(self.images):
            yield f"images: {self.images} is not a folder"
        if self.csv and not os.path.isfile(self.csv):
            yield f"csv: {self.csv} is not a file"


# All fields of a recipe are optional here, because a method may override any of the study's values.
OwnRecipe = create_model(
    "OwnRecipe",
    __base__=Section,
    **{n: (hint, None) for n, hint in get_type_hints(Recipe, include_extras=True).items()},
)


class Method(Section):
    """A method of a study; `_method_of` adds the fields of the configuration of its kind.

    Attributes:
        kind: The name of the method's kind in `METHODS`.
        own_recipe: The hyperparameters that override those of the study.
    """

    kind: str
    own_recipe: described(
        OwnRecipe, "a mapping of the hyperparameters in which a method has its own values"
    ) = Field(OwnRecipe(), alias="recipe")
    _config: Any = PrivateAttr(None)
    _recipe: Recipe = PrivateAttr()

    @model_validator(mode="after")
    def _values_go_together(self) -> "Method":
        if config := METHODS[self.kind].config:
            self._config = config(**{f.name: getattr(self, f.name) for f in fields(config)})
        return self

    @property
    def config(self) -> Any:
        """The configuration, of the type in `METHODS`, or None if the kind of method has none."""
        return self._config

    @property
    def recipe(self) -> Recipe:
        """The hyperparameters of the study, overridden by the method's own; `Study` sets them."""
        return self._recipe

    @property
    def adapter(self) -> AdapterConfig | None:
        """The configuration of the adapter; None if the method learns no adapter."""
        return self.config if METHODS[self.kind].low_rank else None

    @property
    def values(self) -> dict[str, Any]:
        """The kind and the fields of the configuration, as they are written in study files."""
        return {"kind": self.kind, **({} if self.config is None else to_values(self.config))}


def _method_of(kind: str) -> type[Method]:
    """Return the type of the methods of a kind, which has the fields of its configuration."""
    config = METHODS[kind].config
    hints = {} if config is None else get_type_hints(config, include_extras=True)
    required = {name: (hint, ...) for name, hint in hints.items()}
    return create_model(kind, __base__=Method, kind=(one_of(kind), ...), **required)


AnyMethod = Annotated[
    reduce(or_, map(_method_of, METHODS)),
    Field(discriminator="kind"),
    Allowed(f"a mapping with the key kind, one of {', '.join(METHODS)}"),
]
