"""The record of a run, `metrics.json` (docs/architecture.md), and its `history.csv`."""

import csv
import io
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from blocklora.engine.loop import History
from blocklora.provenance import run_provenance
from blocklora.runs.device import device_name
from blocklora.runs.task import Task
from blocklora.study.model import Run, Study

HISTORY_COLUMNS = ("step", "loss", "train_accuracy", "learning_rate", "seconds")


@dataclass(frozen=True)
class Compute:
    """How to compute, which changes no number but by rounding."""

    device: str
    precision: str
    engine: str
    workers: int


def result_of(
    task: Task, correct: int, train_correct: int | None, train_images: int
) -> dict[str, Any]:
    """Return the accuracies of a run; `train_correct` is None where nothing was trained."""
    return {
        "test_accuracy": correct / len(task.labels),
        "test_correct": correct,
        "test_images": len(task.labels),
        "train_accuracy": None if train_correct is None else train_correct / train_images,
        "train_images": train_images,
        "classes": len(task.names),
    }


def record_of(
    study: Study,
    run: Run,
    task: Task,
    compute: Compute,
    started: datetime,
    result: dict[str, Any],
    cost: dict[str, Any],
    shots_sha256: str | None = None,
) -> dict[str, Any]:
    """Return the content of `metrics.json` (docs/architecture.md)."""
    adapter = study.methods[run.method].adapter
    return {
        "schema": 1,
        "run": {"study": study.name, **vars(run)},
        "result": result,
        "adapter": None if adapter is None else adapter.to_json(),
        "cost": cost,
        "provenance": {
            **run_provenance(study, run, compute.precision, compute.engine),
            "backbone_sha256": task.backbone.sha256,
            "shots_sha256": shots_sha256,
            "device": compute.device,
            "device_name": device_name(compute.device),
            "started": started.isoformat(timespec="seconds"),
        },
    }


def history_csv(history: History) -> str:
    """Return the content of `history.csv`."""
    text = io.StringIO()
    writer = csv.DictWriter(text, HISTORY_COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(history.rows)
    return text.getvalue()
