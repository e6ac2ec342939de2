"""Measured generalization gaps, to compare with their bounds."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from typing import Any

from blocklora.csvfiles import read_rows
from blocklora.errors import UserError
from blocklora.study.run import Run
from blocklora.theory.context import Context, adapted_runs

RUN_COLUMNS = ("train_accuracy", "test_accuracy", "trainable_parameters")
BOUND_COLUMNS = ("backbone", "dataset", "method", "shots", "parameters", "bound")


def rows(context: Context) -> Iterator[dict[str, Any]]:
    """Yield the rows of gaps.csv.

    Raises:
        UserError: runs.csv or bounds.csv is missing or damaged, or they belong to different
            studies.
    """
    bounds = read_rows(context.results / "theory/bounds.csv", BOUND_COLUMNS)
    return gap_rows(adapted_runs(context, RUN_COLUMNS), bounds)


def gap_rows(
    runs: Iterable[tuple[Run, Mapping[str, str]]], bounds: Iterable[Mapping[str, str]]
) -> Iterator[dict[str, Any]]:
    """Yield the training minus the test accuracy of each run, and its bound from bounds.csv.

    Accuracies are fractions, and those of training are measured on unaugmented images, so this is
    the gap of the 0-1 loss. It never exceeds 1, so a bound of 1 or more is vacuous.

    Raises:
        UserError: A run has no bound, or its bound is for another number of parameters.
    """
    bound_of = {
        (row["backbone"], row["dataset"], row["method"], int(row["shots"])): row for row in bounds
    }
    for run, row in runs:
        bound = bound_of.get((run.backbone, run.dataset, run.method, run.shots))
        if bound is None:
            raise UserError(
                f"run {run.folder} has no row in bounds.csv; please make bounds.csv again for this "
                "study"
            )
        if int(row["trainable_parameters"]) != int(bound["parameters"]):
            raise UserError(
                f"run {run.folder} trained {row['trainable_parameters']} parameters, but its bound "
                f"is for {bound['parameters']}; the run or bounds.csv belongs to another study"
            )
        train, test = float(row["train_accuracy"]), float(row["test_accuracy"])
        yield {
            **asdict(run),
            "train_accuracy": train,
            "test_accuracy": test,
            "gap": train - test,
            "bound": bound["bound"],
            "vacuous": float(bound["bound"]) >= 1,
        }
