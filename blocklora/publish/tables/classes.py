"""The table of accuracy per class, and reading predictions, also for the figure of confusions."""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from blocklora.errors import UserError
from blocklora.publish import formats
from blocklora.publish.description import Description
from blocklora.publish.inputs import final_tests
from blocklora.publish.published_accuracies import dataset_label, method_label
from blocklora.publish.render import Table
from blocklora.publish.results import Results
from blocklora.runs.predictions import Predictions
from blocklora.study.run import Run, Test

WORST = 3  # classes with the lowest accuracy in a row of the table
CELL = ["backbone", "dataset", "method"]
PER_CLASS = Description(
    name="per-class",
    caption="Test accuracy per class in percent, over the images of all seeds, with the largest "
    "number of shots: mean and median over classes, the classes with the lowest accuracy and the "
    "one with the highest. Measured.",
    columns=[
        ("method", "method", method_label),
        ("lowest", "worst", str),
        ("highest", "best", str),
        ("classes", "classes", formats.count),
        ("mean", "mean", formats.percent),
        ("median", "median", formats.percent),
    ],
    notes=["Every class is in the CSV form of this table, for each seed."],
    text_columns=3,
)


def final_predictions(results: Results) -> Iterator[tuple[Test, Predictions, list[str]]]:
    """Yield each of the `final_tests` that has predictions, with these and the class names.

    Raises:
        UserError: No test has predictions, or a file of predictions is not valid.
    """
    tests = list(final_tests(results.study))
    found = [test for test in tests if results.predictions_path(test).exists()]
    for test in found or tests[:1]:  # without any file, reading the first one raises the error
        predictions = results.predictions(test)
        names = predictions.facts.get("classnames")
        labels = np.concatenate([predictions.label, predictions.predicted])
        if not isinstance(names, list) or labels.min() < 0 or labels.max() >= len(names):
            path = results.predictions_path(test)
            raise UserError(f"{path}: its labels have no class names; delete it and run again")
        yield test, predictions, names


def untested_runs(results: Results) -> list[Run]:
    """Return the runs of the `final_tests` that have no file of predictions."""
    tests = final_tests(results.study)
    return [test.run for test in tests if not results.predictions_path(test).exists()]


def class_frame(results: Results) -> pd.DataFrame:
    """Return how many images each class has in each test, and how many of them are correct.

    Columns: backbone, dataset, method, shots, seed, class, images, correct, accuracy (a fraction,
    NaN for a class without images). The classes are in the order of their labels.
    """
    frames = []
    for test, predictions, names in final_predictions(results):
        label = predictions.label
        images = np.bincount(label, minlength=len(names))
        correct = np.bincount(label[label == predictions.predicted], minlength=len(names))
        run = {key: getattr(test.run, key) for key in ("backbone", "method", "shots", "seed")}
        frame = pd.DataFrame({"class": names, "images": images, "correct": correct})
        frames.append(frame.assign(**run, dataset=test.dataset, accuracy=correct / images.clip(1)))
    frame = pd.concat(frames, ignore_index=True)
    frame["accuracy"] = frame["accuracy"].where(frame["images"] > 0)
    return frame[[*CELL, "shots", "seed", "class", "images", "correct", "accuracy"]]


def per_class_table(results: Results) -> Table:
    """Return the table of the classes with the lowest and the highest accuracy of each method."""
    frame = class_frame(results)
    label = frame.groupby(
        [*CELL, "seed"]
    ).cumcount()  # of labels, since two classes may have the same name
    pooled = frame.groupby([*CELL, label, "class"], sort=False)[["images", "correct"]].sum()
    pooled = pooled[pooled["images"] > 0].reset_index("class")
    percent = pooled.assign(percent=100 * pooled["correct"] / pooled["images"])
    rows = []
    for key, group in percent.groupby(CELL, sort=False):
        ranked = group.sort_values("percent", kind="stable")
        shown = [
            f"{name.replace('_', ' ')} {formats.percent(value)}"
            for name, value in zip(ranked["class"], ranked["percent"], strict=True)
        ]
        values = {"worst": ", ".join(shown[:WORST]), "best": shown[-1], "classes": len(shown)}
        spread = {"mean": ranked["percent"].mean(), "median": ranked["percent"].median()}
        rows.append(dict(zip(CELL, key, strict=True)) | values | spread)
    return PER_CLASS.table(
        results.study,
        frame,
        by=("backbone", "dataset"),
        title=lambda backbone, dataset: f"{backbone}, {dataset_label(dataset)}",
        shown=pd.DataFrame(rows),
        notes=[results.missing_note(untested_runs(results))],
    )
