"""The columns of `runs.csv`, and where each one takes its values from."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from blocklora.runs.predictions import Predictions
from blocklora.study.run import Run

# The cost of a method that is not trained, in addition to the cost of its test.
UNTRAINED = {
    "trainable_parameters": 0,
    "adapted_matrices": 0,
    "adapter_bytes": 0,
    "iterations": 0,
    "training_seconds": 0.0,
}


@dataclass(frozen=True)
class Finished:
    """A finished run of the study named `study`, with the predictions on its own dataset.

    For a method that is not trained, `record`, the content of `fit.json`, is empty, and there are
    no predictions on training images.
    """

    study: str
    run: Run
    record: Mapping[str, Any]
    tested: Predictions
    trained: Predictions | None = None

    @property
    def method(self) -> Mapping[str, Any]:
        """The values of the method in the study, empty for a method that is not trained."""
        return self.record.get("method", {})

    @property
    def cost(self) -> Mapping[str, Any]:
        """The cost of the fit or, for a method that is not trained, of the test."""
        return self.record.get("cost", {**self.tested.facts, **UNTRAINED})

    @property
    def evaluation_seconds(self) -> float:
        """The time of all tests of the run on its own dataset."""
        parts = [self.tested, self.trained]
        return sum(part.facts["seconds"] for part in parts if part is not None)


Column = Callable[[Finished], Any]


def _values(part: str, *names: str) -> dict[str, Column]:
    """Return a column for each of `names` in the mapping that is the attribute `part` of a run.

    A cell is empty if the mapping lacks the value, as that of an older file may.
    """
    mapping = attrgetter(part)
    return {name: lambda finished, name=name: mapping(finished).get(name) for name in names}


COLUMNS: dict[str, Column] = {
    "study": attrgetter("study"),
    **{n: attrgetter(f"run.{n}") for n in ("backbone", "dataset", "method", "shots", "seed")},
    "classes": lambda finished: len(finished.tested.facts["classnames"]),
    "test_images": attrgetter("tested.images"),
    "test_accuracy": attrgetter("tested.accuracy"),
    "train_images": lambda finished: finished.trained.images if finished.trained else 0,
    "train_accuracy": lambda finished: finished.trained.accuracy if finished.trained else None,
    **_values("method", "rank", "blocks", "partition"),
    **_values("cost", "trainable_parameters", "adapted_matrices", "adapter_bytes", "iterations"),
    "wall_seconds": lambda finished: (
        finished.cost["training_seconds"] + finished.evaluation_seconds
    ),
    **_values("cost", "training_seconds"),
    "evaluation_seconds": attrgetter("evaluation_seconds"),
    **_values("cost", "step_seconds", "peak_memory_bytes", "reserved_memory_bytes"),
    **_values("cost", "energy_joules"),
    **_values("tested.facts", "device", "device_name", "precision", "engine", "test_digest"),
}
"""The columns by their names, in the order of the file."""
