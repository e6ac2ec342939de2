"""Studies: their backbones, datasets, methods, shots and seeds, and the runs that follow from them.

The types of the fields of `Study` are also the rules for study files. `validation.py` checks a file
against them, and the JSON schema for editors is generated from them.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import cache, cached_property
from itertools import product
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, PrivateAttr, model_validator

from blocklora.backbones.families import FAMILIES
from blocklora.backbones.shape import ClipConfig
from blocklora.data.registry import Dataset, load_registry
from blocklora.engine.recipe import Recipe
from blocklora.errors import UserError
from blocklora.fields import (
    Allowed,
    Count,
    Name,
    Seed,
    ascending,
    described,
    list_of,
    mapping_of,
    text,
)
from blocklora.files import json_digest
from blocklora.methods import METHODS
from blocklora.miniature.settings import Settings
from blocklora.study.entries import AnyMethod, BackboneSource, OwnDataset
from blocklora.study.run import Run
from blocklora.study.study_files import read_study
from blocklora.validation import Section, closest, show, validated


class Study(Section):
    """The content of a study file; the mappings keep the order of the file.

    Attributes:
        extends: The study that a file extends. It is empty in a study that was read, because
            `read_study` has merged that study into it.
        name: The name of the file without .yaml, which is also the name of the results folder.
        title: The title in captions.
        backbones: The source of each backbone by its name. A published one has the name of its
            model; a miniature may have any name.
        datasets: Names in the registry or in `own_datasets`.
        shots: Numbers of training images per class.
        seeds: Seeds for drawing training images and for training.
        methods: Methods by name; exactly one is of the kind zero_shot.
        recipe: The hyperparameters of training, which methods may override.
        experiments: The names of experiments (`blocklora/experiments/`), or None for all that apply
            to the study.
        own_datasets: The user's own datasets by name.
        miniature: Settings of drawn images and of the small CLIP; None if the study has neither.
    """

    words = "a mapping of the keys of a study"

    extends: text("the name of a study in the same folder, or the path of a study file") = ""
    name: Annotated[Name, Allowed("the name of the file without .yaml")]
    title: text("a line of text for captions")
    backbones: mapping_of(
        described(BackboneSource, f"a mapping with the key source, one of {', '.join(FAMILIES)}"),
        "a mapping from names of backbones to their sources, such as {source: openai}",
    )
    datasets: list_of(text("the name of a dataset"), "a list of different names of datasets")
    shots: ascending(Count, "a list of different whole numbers of at least 1, ascending")
    seeds: ascending(Seed, "a list of different whole numbers of at least 0, ascending")
    methods: mapping_of(AnyMethod, "a mapping from names of methods to their definitions")
    recipe: described(Recipe, "a mapping of the hyperparameters of training")
    experiments: list_of(
        text("the name of an experiment"),
        "a list of different names of experiments, such as few_shot",
    ) = None
    own_datasets: mapping_of(
        described(OwnDataset, "a mapping, {images: folder} or {images: folder, csv: file}"),
        "a mapping from names of datasets to their folders",
    ) = Field(default_factory=dict)
    miniature: described(
        Settings, "a mapping of the settings of drawn images and of the small CLIP"
    ) = None
    _path: Path = PrivateAttr()
    _document: dict[str, Any] = PrivateAttr()

    @model_validator(mode="after")
    def _parts_go_together(self) -> "Study":
        if faults := [*self._merge_recipes(), *self._faults()]:
            raise ValueError("\n".join(faults))
        return self

    def _merge_recipes(self) -> list[str]:
        """Set the recipe of each method, and return the faults of recipes that do not fit."""
        faults = []
        for name, method in self.methods.items():
            try:
                own = method.own_recipe.model_dump(exclude_unset=True)
                method._recipe = replace(self.recipe, **own)
            except ValueError as error:
                faults += [f"methods.{name}.recipe.{line}" for line in str(error).splitlines()]
        return faults

    def _faults(self) -> Iterator[str]:
        zero_shot = [name for name, method in self.methods.items() if method.kind == "zero_shot"]
        if len(zero_shot) != 1:
            yield (
                f"methods: {len(zero_shot)} methods of kind zero_shot are not allowed; there must "
                "be exactly one, because every accuracy is compared with it"
            )
        yield from self._experiment_faults()
        yield from self._dataset_faults()
        yield from self._miniature_faults()
        yield from self._backbone_faults()

    def _experiment_faults(self) -> Iterator[str]:
        from blocklora.experiments import EXPERIMENTS  # which imports this module

        for index, name in enumerate(self.experiments or ()):
            if name not in EXPERIMENTS:
                yield (
                    f"experiments[{index}]: {show(name)} is not allowed; it must be one of "
                    f"{', '.join(EXPERIMENTS)}{closest(name, EXPERIMENTS)}"
                )

    def _dataset_faults(self) -> Iterator[str]:
        known = {*registry(), *self.own_datasets}
        for index, name in enumerate(self.datasets):
            if name not in known:
                yield (
                    f"datasets[{index}]: {name} is neither in the registry nor in own_datasets"
                    f"{closest(name, known)} (allowed: {', '.join(sorted(known))})"
                )
        for name in self.own_datasets:
            if name in registry():
                yield f"own_datasets.{name}: the registry has a dataset of this name already"

    def _miniature_faults(self) -> Iterator[str]:
        drawn = [f"the dataset {name}" for name in self.datasets if name in drawn_datasets()]
        drawn += [f"the backbone {n}" for n, entry in self.backbones.items() if entry.family.drawn]
        if drawn and not self.miniature:
            yield f"miniature: missing; it must be the settings for drawing, which {drawn[0]} needs"
        if self.miniature and not drawn:
            yield "miniature: no dataset or backbone of this study is drawn; delete the key"

    def _backbone_faults(self) -> Iterator[str]:
        if not self.backbones:
            yield "backbones: {} is not allowed; there must be at least one"
        for name, entry in self.backbones.items():
            source, family = entry.source, entry.family
            known = family.names and family.names(source)
            if known is not None and name not in known:
                yield (
                    f"backbones.{name}: {family.sources[source]} has no such model"
                    f"{closest(name, known)} (allowed: {', '.join(known)})"
                )
            elif self.miniature or not family.drawn:
                yield from self._misfits(name)

    def _misfits(self, backbone: str) -> Iterator[str]:
        """Yield each reason why the adapter of a method does not fit a backbone."""
        shapes = self.backbone_config(backbone).tower_shapes
        for name, method in self.methods.items():
            if method.adapter:
                misfits = dict.fromkeys(method.adapter.misfits(shapes))
                yield from (f"methods.{name}: {why} (backbone {backbone})" for why in misfits)

    @property
    def path(self) -> Path:
        """The study file."""
        return self._path

    @property
    def document(self) -> dict[str, Any]:
        """The content of the file, merged with the study that it extends."""
        return self._document

    @cached_property
    def digest(self) -> str:
        """The SHA-256 of the document without the title, which does not change any number."""
        return json_digest({k: v for k, v in self.document.items() if k != "title"})

    @property
    def zero_shot(self) -> str:
        """The name of the zero-shot method, which all other methods are compared with."""
        return next(name for name, method in self.methods.items() if method.kind == "zero_shot")

    @property
    def fitted_methods(self) -> tuple[str, ...]:
        """The names of the methods that are trained."""
        return tuple(n for n, method in self.methods.items() if METHODS[method.kind].trained)

    @property
    def adapter_methods(self) -> tuple[str, ...]:
        """The names of the methods that learn an adapter."""
        return tuple(n for n, method in self.methods.items() if METHODS[method.kind].low_rank)

    @property
    def local_datasets(self) -> tuple[str, ...]:
        """The names of the datasets that are not published: drawn ones and the user's own."""
        local = drawn_datasets() | self.own_datasets.keys()
        return tuple(name for name in self.datasets if name in local)

    def backbones_made_by(self, command: str) -> tuple[str, ...]:
        """Return the names of the backbones whose files a subcommand of `blocklora` writes."""
        return tuple(n for n, entry in self.backbones.items() if entry.family.command == command)

    def runs(self) -> Iterator[Run]:
        """Yield every run, in the order of the file; one without training has 0 shots, seed 0."""
        fitted = self.fitted_methods
        for cell in product(self.backbones, self.datasets, self.methods):
            draws = product(self.shots, self.seeds) if cell[-1] in fitted else [(0, 0)]
            yield from (Run(*cell, *draw) for draw in draws)

    def image_size(self, backbone: str) -> int:
        """Return the width and height in pixels of the images that a backbone takes.

        Raises:
            UserError: See `backbone_config`.
        """
        return self.backbone_config(backbone).image_size

    def backbone_config(self, backbone: str) -> ClipConfig:
        """Return the configuration of a backbone.

        Raises:
            UserError: open_clip does not describe the model, or describes it with another
                activation or with parts that this project does not compute.
        """
        return self.backbones[backbone].family.config(backbone, self.miniature)


def load_study(path: str | Path, images_needed: bool = False) -> Study:
    """Read and check a study file.

    Paths in the file are relative to the working directory, as on the command line.

    Args:
        path: The path of the file.
        images_needed: True to check that the user's own images exist.

    Raises:
        UserError: The file is missing or has faults. The message has a line for each fault that was
            found; faults between values are looked for once all single values are allowed.
    """
    path = Path(path)
    document, where = read_study(path)
    study = validated(Study, document, where)
    faults = []
    if study.name != path.stem:
        faults.append(
            f"name: {show(study.name)} is not allowed; it must be the name of the file, {path.stem}"
        )
    if images_needed:
        faults += [
            f"own_datasets.{name}.{fault}"
            for name, own in study.own_datasets.items()
            for fault in own.absent()
        ]
    if faults:
        raise UserError("\n".join(f"{where}: {fault}" for fault in faults))
    study._path, study._document = path, document
    return study


@cache
def registry() -> dict[str, Dataset]:
    """Return the datasets of the registry by name; its files are read once per process."""
    return load_registry()


def drawn_datasets() -> frozenset[str]:
    """Return the names of the datasets in the registry that are drawn, not downloaded."""
    return frozenset(name for name, entry in registry().items() if entry.layout == "drawn")
