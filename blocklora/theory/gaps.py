"""Measured generalization gaps beside their bounds."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from blocklora.errors import UserError

COLUMNS = (
    "backbone",
    "dataset",
    "method",
    "shots",
    "seed",
    "train_accuracy",
    "test_accuracy",
    "gap",
    "bound",
    "vacuous",
)
RUN_COLUMNS = (
    *("backbone", "dataset", "method", "shots", "seed", "train_accuracy", "test_accuracy"),
    *("rank", "trainable_parameters"),
)
BOUND_COLUMNS = ("backbone", "dataset", "method", "shots", "parameters", "bound")
CELL = ("backbone", "dataset", "method", "shots")


def gap_rows(
    runs: Iterable[Mapping[str, str]], bounds: Iterable[Mapping[str, str]]
) -> Iterator[dict[str, Any]]:
    """Yield the rows of gaps.csv: training minus test accuracy of each adapted run, and the bound.

    Both accuracies are fractions, the training one of the unaugmented shots, so the gap is that of
    the 0-1 loss. A bound of 1 or more is vacuous: no gap of a 0-1 loss exceeds 1.

    Args:
        runs: rows of runs.csv; those without an adapter (zero-shot) are passed over.
        bounds: rows of bounds.csv.

    Raises:
        UserError: a run has no bound, or trained another number of parameters than its bound
            was computed for.
    """
    bound_of = {tuple(row[key] for key in CELL): row for row in bounds}
    for run in runs:
        if not run["rank"]:
            continue
        cell = tuple(run[key] for key in CELL)
        name = "/".join((*cell, run["seed"]))
        if cell not in bound_of:
            raise UserError(
                f"run {name} has no row in the bounds; make bounds.csv again from the same study"
            )
        bound = bound_of[cell]
        if int(run["trainable_parameters"]) != int(bound["parameters"]):
            raise UserError(
                f"run {name} trained {run['trainable_parameters']} parameters, its bound was "
                f"computed for {bound['parameters']}; the run or bounds.csv is of another study"
            )
        yield {
            **{key: run[key] for key in (*CELL, "seed", "train_accuracy", "test_accuracy")},
            "gap": float(run["train_accuracy"]) - float(run["test_accuracy"]),
            "bound": bound["bound"],
            "vacuous": float(bound["bound"]) >= 1,
        }
