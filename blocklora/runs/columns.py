"""The columns of `runs.csv`: what each one takes from a run's record and predictions."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from blocklora.runs.predictions import Predictions
from blocklora.study.run import Run


@dataclass(frozen=True)
class Finished:
    """A finished run.

    Attributes:
        study: name of the study.
        run: the run.
        record: its `fit.json`, empty for a method that is not trained.
        tested: predictions on the test images.
        trained: predictions on the training images, None for a method that is not trained.
    """

    study: str
    run: Run
    record: Mapping[str, Any]
    tested: Predictions
    trained: Predictions | None = None

    def of_fit(self, part: str, name: str, untrained: Any = None) -> Any:
        """Return a value of the record; None if it is older than the value."""
        return self.record[part].get(name) if self.record else untrained

    @property
    def evaluation_seconds(self) -> float:
        """The time of all tests of the run on its own dataset."""
        parts = [self.tested, self.trained]
        return sum(part.facts["seconds"] for part in parts if part is not None)


def _run(name: str) -> Callable[[Finished], Any]:
    return lambda finished: getattr(finished.run, name)


def _method(name: str) -> Callable[[Finished], Any]:
    return lambda finished: finished.of_fit("method", name)


def _cost(name: str, untrained: Any = None) -> Callable[[Finished], Any]:
    return lambda finished: finished.of_fit("cost", name, untrained)


def _cost_or_test(name: str) -> Callable[[Finished], Any]:
    """Return what a fit took, or the test of a method that is not trained."""
    return lambda finished: finished.of_fit("cost", name, finished.tested.facts.get(name))


def _test(name: str) -> Callable[[Finished], Any]:
    return lambda finished: finished.tested.facts.get(name)


COLUMNS: dict[str, Callable[[Finished], Any]] = {
    "study": lambda finished: finished.study,
    "backbone": _run("backbone"),
    "dataset": _run("dataset"),
    "method": _run("method"),
    "shots": _run("shots"),
    "seed": _run("seed"),
    "classes": lambda finished: len(finished.tested.facts["classnames"]),
    "test_images": lambda finished: finished.tested.images,
    "test_accuracy": lambda finished: finished.tested.accuracy,
    "train_images": lambda finished: finished.trained.images if finished.trained else 0,
    "train_accuracy": lambda finished: finished.trained.accuracy if finished.trained else None,
    "rank": _method("rank"),
    "blocks": _method("blocks"),
    "partition": _method("partition"),
    "trainable_parameters": _cost("trainable_parameters", untrained=0),
    "adapted_matrices": _cost("adapted_matrices", untrained=0),
    "adapter_bytes": _cost("adapter_bytes", untrained=0),
    "iterations": _cost("iterations", untrained=0),
    "wall_seconds": lambda finished: (
        finished.of_fit("cost", "training_seconds", 0.0) + finished.evaluation_seconds
    ),
    "training_seconds": _cost("training_seconds", untrained=0.0),
    "evaluation_seconds": lambda finished: finished.evaluation_seconds,
    "step_seconds": _cost("step_seconds"),
    "peak_memory_bytes": _cost_or_test("peak_memory_bytes"),
    "reserved_memory_bytes": _cost_or_test("reserved_memory_bytes"),
    "energy_joules": _cost_or_test("energy_joules"),
    "device": _test("device"),
    "device_name": _test("device_name"),
    "precision": _test("precision"),
    "engine": _test("engine"),
    "test_digest": _test("test_digest"),
}
"""By name, in their order; a column that older records know nothing of is empty for them."""
