"""What a method is: its description, and the functions that fit it and that classify by it.

A method is one module with one subclass of `Method`, or of `FittedMethod` if it learns from the
training images, listed in `blocklora/methods/__init__.py`.
Study files, the workflow, digests, status and runs.csv follow from the description. Describing a
method imports nothing heavy: its functions import the engine when they are called.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from blocklora.engine.recipe import Recipe

if TYPE_CHECKING:
    import numpy as np

    from blocklora.backbones.model import Backbone
    from blocklora.engine.batches import Images
    from blocklora.engine.classifier import Classifier
    from blocklora.engine.loop import History, Keeper


@dataclass(frozen=True)
class Compute:
    """How to compute, which changes no number but by rounding.

    Attributes:
        device: "cpu" or "cuda".
        precision: one of `PRECISIONS` of `blocklora/engine/precisions.py`.
        engine: "fast" or "reference".
        workers: threads that prepare batches ahead.
    """

    device: str
    precision: str
    engine: str
    workers: int


@dataclass(frozen=True)
class Task:
    """A classification task without its images.

    Attributes:
        backbone: weights of the image–text model.
        names: class names by label.
        tokenize: turns a prompt template into the token ids of every class prompt.
        kept: Whatever a method keeps from one fit for the next one on the task, by its kind.
    """

    backbone: "Backbone"
    names: list[str]
    tokenize: Callable[[str], list[list[int]]]
    kept: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)


@dataclass(frozen=True)
class Shots:
    """The training images of a run.

    Attributes:
        images: decoded, of any sizes.
        labels: their classes, int64 (images,).
        per_class: shots.
        seed: the seed of the run.
    """

    images: "Images"
    labels: "np.ndarray"
    per_class: int
    seed: int


@dataclass(frozen=True)
class Fit:
    """What a method learned, and what it cost to learn it.

    Attributes:
        learned: whatever `FittedMethod.save` writes and `FittedMethod.load` reads.
        history: the course of the training, for `history.csv`; None if it has no steps.
        facts: numbers for the record, by the names of columns of runs.csv.
    """

    learned: Any
    history: "History | None"
    facts: Mapping[str, Any]


class Method(ABC):
    """The description of a method that needs no fitting, and so has no shots and no seeds.

    Attributes:
        kind: the value of `kind` in study files.
        config: dataclass of its values in study files (`blocklora/fields.py`); None has none.
        trained: True if it is fitted, as those of `FittedMethod` are.
        low_rank: True if it learns an adapter, so that spectra, bounds and compression apply.
        engines: True if an engine of `blocklora/engine/engines.py` trains it.
        files: the names of the files that a fit leaves beside `fit.json` and `history.csv`.
    """

    kind: ClassVar[str]
    config: ClassVar[type | None] = None
    trained: ClassVar[bool] = False
    low_rank: ClassVar[bool] = False
    engines: ClassVar[bool] = False
    files: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def classifier(
        self, learned: Any, recipe: Recipe, task: Task, device: str, precision: str
    ) -> "Classifier":
        """Return what classifies images of a task, which may be another one than was fitted.

        Args:
            learned: as in `Fit`; None for a method that is not fitted.
            recipe: hyperparameters of the method in the study.
            task: the classification task.
            device: "cpu" or "cuda".
            precision: as in `Compute`.
        """


class FittedMethod(Method):
    """The description of a method that learns from the training images."""

    trained = True

    @abstractmethod
    def fit(
        self,
        config: Any,
        recipe: Recipe,
        task: Task,
        shots: Shots,
        compute: Compute,
        keeper: "Keeper",
    ) -> Fit:
        """Learn from the shots.

        Args:
            config: values of the method in the study.
            recipe: hyperparameters of training.
            task: the classification task.
            shots: the training images.
            compute: device, precision, engine and threads.
            keeper: the keeper of unfinished work, which is told of every step.
        """

    @abstractmethod
    def save(self, fit: Fit, folder: Path, backbone: "Backbone", facts: Mapping[str, Any]) -> None:
        """Write `files` of a fit into a folder; `facts` say which run on which task it is of."""

    @abstractmethod
    def load(self, folder: Path, backbone: "Backbone", config: Any) -> Any:
        """Return what a fit in a folder learned.

        Raises:
            UserError: a file is missing, damaged, or of another backbone or configuration.
        """
