"""The base classes of methods; read this to add a method of your own.

A method is a module with a subclass of `Method`, or of `FittedMethod` if it learns from the
training images, and is listed in `blocklora/methods/__init__.py`. Study files, the workflow,
digests, the status and runs.csv follow from its attributes. Modules of methods must be quick to
import, so their functions import the engine only when they are called.
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
    """The device, precision, engine and threads of a computation.

    They affect results only by rounding, except that each engine has its own random draws of
    dropout, and those of the reference engine depend on the device.

    Attributes:
        device: "cpu" or "cuda".
        precision: One of `PRECISIONS` in `blocklora/engine/precisions.py`.
        engine: One of `ENGINES` in `blocklora/engine/engines.py`.
        workers: Number of threads that prepare batches ahead; 0 prepares none ahead.
    """

    device: str
    precision: str
    engine: str
    workers: int


@dataclass(frozen=True)
class Task:
    """A classification task without its images.

    Attributes:
        backbone: The image–text model.
        names: Class names by label.
        tokenize: Returns the token ids of all class prompts for a prompt template.
        kept: Objects that methods keep for the next fit on this task, by the kind of the method.
            Classifiers clear it if memory runs out.
    """

    backbone: "Backbone"
    names: list[str]
    tokenize: Callable[[str], list[list[int]]]
    kept: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)


@dataclass(frozen=True)
class Shots:
    """The training images of a run.

    Attributes:
        images: Decoded images of any sizes.
        labels: Their classes, int64 (images,).
        per_class: Number of images per class.
        seed: The seed of the run.
    """

    images: "Images"
    labels: "np.ndarray"
    per_class: int
    seed: int


@dataclass(frozen=True)
class Fit:
    """The result of a fit.

    Attributes:
        learned: Whatever `FittedMethod.save` writes and `FittedMethod.load` reads.
        history: The training history for `history.csv`; None for a method without steps.
        facts: Numbers for the record of the run, by their columns in runs.csv. They replace those
            that are measured for every method.
    """

    learned: Any
    history: "History | None"
    facts: Mapping[str, Any]


class Method(ABC):
    """A method that needs no training, and therefore has neither shots nor seeds.

    Attributes:
        kind: The value of `kind` in study files.
        config: Dataclass of its values in study files (`blocklora/fields.py`), if it has any.
        trained: True for a `FittedMethod`.
        low_rank: True if it learns an adapter, so that spectra, bounds and compression apply.
        engines: True if it is trained by an engine of `blocklora/engine/engines.py`.
        files: Names of the files that a fit writes in addition to `fit.json` and `history.csv`.
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
        """Return a classifier for a task, which may differ from the one that was fitted.

        `learned` is what `FittedMethod.load` returns; it is None for a method that is not fitted.
        """


class FittedMethod(Method):
    """A method that learns from the training images."""

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

        `config` has the values of the method in the study file, and `keeper` saves checkpoints.

        Raises:
            UserError: The fit fails, for example because a loss is not finite.
            Interrupted: The keeper stopped the fit.
        """

    @abstractmethod
    def save(self, fit: Fit, folder: Path, backbone: "Backbone", facts: Mapping[str, Any]) -> None:
        """Write the `files` of a fit into a folder, with `facts` about its run as metadata.

        Raises:
            UserError: A file cannot be written.
        """

    @abstractmethod
    def load(self, folder: Path, backbone: "Backbone", config: Any) -> Any:
        """Load what a fit saved in a folder.

        Raises:
            UserError: A file is missing or damaged, or is for another backbone or configuration.
        """
