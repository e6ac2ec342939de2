"""The published CLIP models in `models.yaml`, and their configurations."""

import json
import os
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

from blocklora.backbones.family import Family, MiniatureSettings
from blocklora.backbones.shape import OPENAI_MEAN, OPENAI_STD, ClipConfig, open_clip_file
from blocklora.errors import UserError
from blocklora.fields import from_values
from blocklora.yamlfiles import read_yaml

MODELS = Path(__file__).with_name("models.yaml")


@dataclass(frozen=True)
class PublishedModel:
    """A published model; `models.yaml` explains the fields."""

    name: str
    publisher: str
    source: str
    architecture: str
    quick_gelu: bool
    repository: str
    revision: str
    file: str
    sha256: str
    archive: str | None = None
    archive_sha256: str | None = None
    published_as: str | None = None
    mean: tuple[float, float, float] = OPENAI_MEAN
    std: tuple[float, float, float] = OPENAI_STD

    @property
    def hub_address(self) -> str:
        """The address of the weights on the hub, or on the mirror that HF_ENDPOINT names."""
        endpoint = (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
        return f"{endpoint}/{self.repository}/resolve/{self.revision}/{self.file}"

    @property
    def hub_file(self) -> str:
        """The name that the hub's file gets in the folder of weights."""
        return f"{self.name}{PurePosixPath(self.file).suffix}"

    @property
    def archive_file(self) -> str | None:
        """The name of the publisher's own file, or None if it is not known."""
        return self.archive and PurePosixPath(self.archive).name


@cache
def models() -> dict[str, PublishedModel]:
    """Return all published models by their names in study files.

    Raises:
        UserError: An entry lacks a key, or has a wrong one or an unknown source.
    """
    found, document = {}, read_yaml(MODELS)
    for name, entry in document["models"].items():
        try:
            about = {"name": name, "publisher": document["sources"][entry["source"]]}
            found[name] = from_values(PublishedModel, about | entry)
        except (KeyError, TypeError) as error:
            raise UserError(f"{MODELS}: models.{name}: not the entry of a model: {error}") from None
    return found


def published_model(name: str) -> PublishedModel:
    """Return the published model with this name in study files.

    Raises:
        UserError: There is no such model, or the name means a model with the exact GELU.
    """
    known = models()
    if name in known:
        return known[name]
    model = known.get(f"{name}-quickgelu")
    if model is not None:
        raise UserError(
            f"backbone {name}: QuickGELU mismatch: {model.publisher}'s weights were trained with "
            f"QuickGELU, but the model {name} computes the exact GELU; write {model.name} in the "
            "study"
        )
    raise UserError(
        f"backbone {name}: no published weights are known for it; use one of {', '.join(known)}"
    )


@cache
def published_config(name: str) -> ClipConfig:
    """Return the configuration of a published model from the files of the installed open_clip.

    Raises:
        UserError: There is no such model, or open_clip is not installed or does not describe it, or
            describes it with another activation or with parts that this project does not compute.
    """
    model = published_model(name)
    path = open_clip_file(f"model_configs/{model.architecture}.json")
    if not path.is_file():
        raise UserError(f"{path}: the installed open_clip has no model {model.architecture}")
    described = json.loads(path.read_text(encoding="utf-8"))
    try:
        config = ClipConfig.from_open_clip(name, described)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    if config.quick_gelu != model.quick_gelu:
        words = {True: "with QuickGELU", False: "with the exact GELU"}
        raise UserError(
            f"{path}: QuickGELU mismatch: this open_clip describes {model.architecture} "
            f"{words[config.quick_gelu]}, but {model.publisher}'s weights of {name} were trained "
            f"{words[model.quick_gelu]}; install the locked version of open_clip, or name another "
            f"architecture in {MODELS.name}"
        )
    return replace(config, mean=model.mean, std=model.std)


def _definition(name: str, miniature: MiniatureSettings) -> dict[str, Any]:
    model = published_model(name)
    kept = ("architecture", "quick_gelu", "sha256", "mean", "std")
    return {key: getattr(model, key) for key in kept}


PUBLISHED = Family(
    sources=read_yaml(MODELS)["sources"],
    command="fetch-backbone",
    code="blocklora.backbones.checkpoints",
    config=lambda name, miniature: published_config(name),
    definition=_definition,
    names=lambda source: tuple(n for n, model in models().items() if model.source == source),
    published_as=lambda name: published_model(name).published_as,
)
