"""A study: which backbones, datasets, methods, shots and seeds, and every number behind a run."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blocklora.adapters.config import AdapterConfig
from blocklora.backbones.config import ClipConfig
from blocklora.backbones.families import FAMILIES
from blocklora.backbones.family import Family
from blocklora.engine.recipe import Recipe
from blocklora.fields import from_values, to_values
from blocklora.files import file_digest, folder_state, json_digest
from blocklora.methods import METHODS
from blocklora.study.validation import check_study, drawn_datasets, method_config


@dataclass(frozen=True)
class BackboneSource:
    """Where weights come from: a publisher's release, such as "openai", or "miniature"."""

    source: str

    @property
    def family(self) -> Family:
        """The family that has this source."""
        return FAMILIES[self.source]


@dataclass(frozen=True)
class Method:
    """A method of a study.

    Attributes:
        kind: the name of its method in `METHODS`.
        config: its values, of the type that the method describes; None where it has none.
        recipe: the study's hyperparameters, with the method's own in their place.
    """

    kind: str
    config: Any
    recipe: Recipe

    @property
    def adapter(self) -> AdapterConfig | None:
        """The configuration of the adapter, None for a method that learns no adapter."""
        return self.config if METHODS[self.kind].low_rank else None

    @property
    def values(self) -> dict[str, Any]:
        """The kind and the values of `config`, as a study file has them."""
        return {"kind": self.kind, **({} if self.config is None else to_values(self.config))}


@dataclass(frozen=True)
class OwnDataset:
    """A dataset of the user's: a folder of images, listed by folders or by a CSV file.

    Attributes:
        images: the folder.
        csv: the CSV file, if there is one.
        state: The digest of the names, sizes and times of all files, which tells when they change.
    """

    images: Path
    csv: Path | None = None
    state: str = ""


@dataclass(frozen=True)
class Run:
    """One fit; a method that is not trained has one run of 0 shots and seed 0."""

    backbone: str
    dataset: str
    method: str
    shots: int
    seed: int

    @property
    def folder(self) -> str:
        """The run's folder below `runs/`."""
        return f"{self.backbone}/{self.dataset}/{self.method}/{self.shots}shot/seed{self.seed}"

    @property
    def own_tests(self) -> tuple["Test", ...]:
        """The tests of the run on its own dataset: test images and, if fitted, shots."""
        tested = Test(self, self.dataset)
        return (tested, Test(self, self.dataset, "train")) if self.shots else (tested,)


@dataclass(frozen=True)
class Test:
    """A fitted method on the images of a dataset, its own or another one.

    Attributes:
        run: the run that was fitted.
        dataset: the dataset whose images are classified.
        part: "test", or "train" for the training images of the run, not augmented.
    """

    __test__ = False  # pytest takes the name for its own

    run: Run
    dataset: str
    part: str = "test"

    @property
    def file(self) -> str:
        """The file of its predictions below `runs/`."""
        return f"{self.run.folder}/tests/{self.dataset}/{self.part}.safetensors"


@dataclass(frozen=True)
class Study:
    """A study file, checked; the mappings keep the order of the file.

    Attributes:
        path: the file.
        name: the folder of the results, and the stem of the file.
        title: a name of the study for captions.
        backbones: by the name of the published model, or any name for a miniature.
        datasets: names of the registry or of `own_datasets`.
        shots: training images per class, ascending.
        seeds: ascending.
        methods: by name; exactly one is of the kind zero_shot.
        recipe: the hyperparameters of training, which methods may replace by their own.
        experiments: names of the experiments that are asked for, or None where a study has those
            that apply to it (`blocklora/experiments/`).
        own_datasets: definitions of the user's datasets.
        miniature: settings of what is drawn, or None where nothing is.
        digest: SHA-256 of the document without its title, which no number depends on.
    """

    path: Path
    name: str
    title: str
    backbones: Mapping[str, BackboneSource]
    datasets: tuple[str, ...]
    shots: tuple[int, ...]
    seeds: tuple[int, ...]
    methods: Mapping[str, Method]
    recipe: Recipe
    experiments: tuple[str, ...] | None
    own_datasets: Mapping[str, OwnDataset]
    miniature: Mapping[str, Any] | None
    digest: str

    @property
    def zero_shot(self) -> str:
        """The name of the method that every other one is compared with."""
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
        """The names of the datasets that are drawn or the user's, not published ones."""
        local = drawn_datasets() | self.own_datasets.keys()
        return tuple(name for name in self.datasets if name in local)

    def backbones_made_by(self, command: str) -> tuple[str, ...]:
        """Return the names of the backbones whose files this subcommand writes."""
        return tuple(n for n, entry in self.backbones.items() if entry.family.command == command)

    def runs(self) -> Iterator[Run]:
        """Yield every run: backbones, datasets, methods, shots and seeds in the file's order."""
        for backbone in self.backbones:
            for dataset in self.datasets:
                for name in self.methods:
                    if name not in self.fitted_methods:
                        yield Run(backbone, dataset, name, 0, 0)
                        continue
                    for shots in self.shots:
                        for seed in self.seeds:
                            yield Run(backbone, dataset, name, shots, seed)

    def image_size(self, backbone: str) -> int:
        """Return the side of the square images a backbone sees, in pixels."""
        return self.backbone_config(backbone).image_size

    def backbone_config(self, backbone: str) -> ClipConfig:
        """Return the shape of a backbone.

        Raises:
            UserError: open_clip describes the model otherwise than its weights.
        """
        return self.backbones[backbone].family.config(backbone, self.miniature)


def load_study(path: str | Path, images_needed: bool = False) -> Study:
    """Read and check the study file `path`.

    Paths in it are relative to the working directory, as on the command line.

    Args:
        path: the study file.
        images_needed: True if the user's own images have to be there.

    Raises:
        UserError: the file is missing or something in it is wrong; every fault is listed.
    """
    document = check_study(path, images_needed)
    optional = {"experiments": None, "own_datasets": {}, "miniature": None}
    values = optional | document
    made = {
        "path": Path(path),
        "backbones": {name: BackboneSource(**e) for name, e in values["backbones"].items()},
        "methods": {
            name: Method(
                entry["kind"],
                method_config(entry),
                from_values(Recipe, values["recipe"] | entry.get("recipe", {})),
            )
            for name, entry in values["methods"].items()
        },
        "recipe": from_values(Recipe, values["recipe"]),
        "own_datasets": {
            name: _own_dataset(**{key: Path(place) for key, place in entry.items()})
            for name, entry in values["own_datasets"].items()
        },
        "digest": json_digest({key: document[key] for key in document if key != "title"}),
    }
    return from_values(Study, values | made)


def _own_dataset(images: Path, csv: Path | None = None) -> OwnDataset:
    listed = file_digest(csv) if csv is not None and csv.exists() else None
    return OwnDataset(images, csv, json_digest([folder_state(images), listed]))
