"""A study: which backbones, datasets, methods, shots and seeds, and every number behind a run."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from blocklora.adapters.config import AdapterConfig
from blocklora.engine.recipe import Recipe
from blocklora.files import json_digest
from blocklora.provenance import code_digest
from blocklora.study.validation import (
    OPENAI_IMAGE_SIZES,
    check_study,
    drawn_datasets,
    listing_rules,
)


@dataclass(frozen=True)
class BackboneSource:
    """Where CLIP weights come from: OpenAI's release ("openai") or pretraining ("miniature")."""

    source: str


@dataclass(frozen=True)
class Method:
    """A way to classify: `kind` is "zero_shot" or "adapter"; only the latter has an `adapter`."""

    kind: str
    adapter: AdapterConfig | None


@dataclass(frozen=True)
class OwnDataset:
    """A dataset of the user's: a folder of images, listed by folders or by a CSV file."""

    images: Path
    csv: Path | None


@dataclass(frozen=True)
class Run:
    """One training, or one zero-shot classification, which has 0 shots and seed 0."""

    backbone: str
    dataset: str
    method: str
    shots: int
    seed: int

    @property
    def folder(self) -> str:
        """The run's folder below `runs/`."""
        return f"{self.backbone}/{self.dataset}/{self.method}/{self.shots}shot/seed{self.seed}"


@dataclass(frozen=True)
class Study:
    """A study file, checked; the mappings keep the order of the file.

    Attributes:
        path: the file.
        name: the folder of the results, and the stem of the file.
        title: what the study is, for captions.
        backbones: by open_clip's name, or any name for a miniature.
        datasets: names of the registry or of `own_datasets`.
        shots: training images per class, ascending.
        seeds: ascending.
        methods: by name; exactly one is of the kind zero_shot.
        recipe: the hyperparameters of training.
        own_datasets: definitions of the user's datasets.
        miniature: settings of what is drawn, or None where nothing is.
        digest: SHA-256 of the whole document.
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
    own_datasets: Mapping[str, OwnDataset]
    miniature: Mapping[str, Any] | None
    digest: str

    @property
    def zero_shot(self) -> str:
        """The name of the method without training."""
        return next(name for name, method in self.methods.items() if method.kind == "zero_shot")

    @property
    def adapter_methods(self) -> tuple[str, ...]:
        """The names of the methods that are trained."""
        return tuple(name for name, method in self.methods.items() if method.kind == "adapter")

    @property
    def local_datasets(self) -> tuple[str, ...]:
        """The names of the datasets that are drawn or the user's, not published ones."""
        local = drawn_datasets() | self.own_datasets.keys()
        return tuple(name for name in self.datasets if name in local)

    def backbones_from(self, source: str) -> tuple[str, ...]:
        """Return the names of the backbones with this source."""
        return tuple(name for name, entry in self.backbones.items() if entry.source == source)

    def runs(self) -> Iterator[Run]:
        """Yield every run: backbones, datasets, methods, shots and seeds in the file's order."""
        for backbone in self.backbones:
            for dataset in self.datasets:
                for name, method in self.methods.items():
                    if method.kind == "zero_shot":
                        yield Run(backbone, dataset, name, 0, 0)
                        continue
                    for shots in self.shots:
                        for seed in self.seeds:
                            yield Run(backbone, dataset, name, shots, seed)

    def image_size(self, backbone: str) -> int:
        """Return the side of the square images a backbone sees, in pixels."""
        if self.backbones[backbone].source == "openai":
            return OPENAI_IMAGE_SIZES[backbone]
        return self.miniature["image_size"]

    def run_digest(self, run: Run, precision: str, engine: str) -> str:
        """Return the SHA-256 of exactly what the result of `run` depends on.

        Titles, other datasets, other methods and the device are not part of it; the code that
        decides a run's numbers is.
        """
        method = self.methods[run.method]
        recipe = asdict(self.recipe)
        if method.kind == "zero_shot":
            recipe = {"prompt": recipe["prompt"]}
        return json_digest(
            {
                "run": asdict(run),
                "backbone": self.backbone_definition(run.backbone),
                "dataset": self.dataset_definition(run.dataset),
                "adapter": method.adapter and method.adapter.to_json(),
                "recipe": recipe,
                "precision": precision,
                "engine": None if method.kind == "zero_shot" else engine,
                "code": code_digest("zero_shot" if method.kind == "zero_shot" else "train"),
            }
        )

    def backbone_definition(self, backbone: str) -> dict[str, Any]:
        """Return what the weights of `backbone` depend on, as JSON values."""
        source = self.backbones[backbone].source
        return {
            "name": backbone,
            "source": source,
            "miniature": self.miniature if source == "miniature" else None,
        }

    def dataset_definition(self, dataset: str) -> dict[str, Any]:
        """Return what the images of `dataset` depend on, as JSON values."""
        own = self.own_datasets.get(dataset)
        drawn = dataset in drawn_datasets()
        return {
            "name": dataset,
            "own": own and {key: value and str(value) for key, value in asdict(own).items()},
            "miniature": self.miniature if drawn else None,
            "drawing_code": code_digest("draw_dataset") if drawn else None,
        }

    def listing_digest(self, dataset: str) -> str:
        """Return the SHA-256 of what the list of images and labels of `dataset` depends on."""
        return json_digest([self.dataset_definition(dataset), listing_rules(dataset)])


def load_study(path: str | Path) -> Study:
    """Read and check the study file `path`.

    Paths in it are relative to the working directory, as on the command line.

    Raises:
        UserError: the file is missing or something in it is wrong; every fault is listed.
    """
    document = check_study(path)
    own = document.get("own_datasets") or {}
    return Study(
        path=Path(path),
        name=document["name"],
        title=document["title"],
        backbones={name: BackboneSource(**entry) for name, entry in document["backbones"].items()},
        datasets=tuple(document["datasets"]),
        shots=tuple(document["shots"]),
        seeds=tuple(document["seeds"]),
        methods={name: _method(entry) for name, entry in document["methods"].items()},
        recipe=Recipe(**_tuples(document["recipe"])),
        own_datasets={
            name: OwnDataset(Path(entry["images"]), Path(entry["csv"]) if "csv" in entry else None)
            for name, entry in own.items()
        },
        miniature=document.get("miniature"),
        digest=json_digest(document),
    )


def _method(entry: dict[str, Any]) -> Method:
    fields = {key: value for key, value in entry.items() if key != "kind"}
    return Method(entry["kind"], AdapterConfig(**_tuples(fields)) if fields else None)


def _tuples(mapping: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(v) if isinstance(v, list) else v for key, v in mapping.items()}
