"""The figure of confusions: a matrix, or a list of the most frequent pairs for many classes."""

from itertools import product

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.image import AxesImage

from blocklora.errors import UserError
from blocklora.publish import formats
from blocklora.publish.catalogue import MATRICES
from blocklora.publish.figures.canvas import Drawing, choose_backbone, panels
from blocklora.publish.published_accuracies import dataset_label, method_label
from blocklora.publish.results import Results, caption_of
from blocklora.publish.tables.classes import final_predictions, untested_runs

FEW_CLASSES = 20  # the most classes that a matrix of this size can show
LISTED = 5  # the number of confusions that are listed for a dataset with more classes


def confusion_frame(results: Results, backbone: str) -> pd.DataFrame:
    """Return the numbers of images of each class that were taken for each class, over all seeds.

    Columns: backbone, dataset, method, label, class, predicted_label, predicted, images, share (of
    the images of the class, a fraction). Pairs of classes that do not occur are left out.

    Raises:
        UserError: No test has predictions, or a file of predictions is not valid.
    """
    tests = []
    for test, predictions, names in final_predictions(results):
        if test.run.backbone == backbone:
            classes = np.array(names, object)
            facts = {
                "backbone": backbone,
                "dataset": test.dataset,
                "method": test.run.method,
                "label": predictions.label,
                "class": classes[predictions.label],
                "predicted_label": predictions.predicted,
                "predicted": classes[predictions.predicted],
            }
            tests.append(pd.DataFrame(facts))
    if not tests:
        raise UserError(f"{results.folder}: has no predictions of {backbone}; finish its runs")
    images = pd.concat(tests, ignore_index=True)
    matrices = images.groupby(["dataset", "method"], sort=False)
    counts = [matrix.groupby(list(images)).size() for _, matrix in matrices]
    frame = pd.concat(counts).rename("images").reset_index()
    of_class = frame.groupby(["dataset", "method", "label"])["images"].transform("sum")
    return frame.assign(share=frame["images"] / of_class)


def confusions_figure(results: Results, backbone: str | None = None) -> Drawing:
    """Draw a row of panels per dataset, with a panel per method, for the largest number of shots.

    Raises:
        UserError: The study has more methods than fit side by side, or there are no predictions.
    """
    study = results.study
    backbone = choose_backbone(study, backbone)
    methods = list(study.methods)
    if len(methods) > MATRICES:
        raise UserError(
            f"{study.path}: has {len(methods)} methods, {MATRICES} fit side by side in the figure "
            "of confusions; the table per-class shows any number"
        )
    frame = confusion_frame(results, backbone)
    labels = frame.groupby("dataset")[["label", "predicted_label"]].max()
    classes = (labels.max(axis=1) + 1).to_dict()
    datasets = [name for name in study.datasets if name in classes]
    heights = [1.45 if classes[name] <= FEW_CLASSES else 0.75 for name in datasets]
    image, size = None, (len(datasets), len(methods))
    grid = panels(study, 0.6 + sum(heights), *size, height_ratios=heights)
    with grid as (figure, axes):
        for axis, (dataset, method) in zip(axes, product(datasets, methods), strict=True):
            cells = frame[(frame["dataset"] == dataset) & (frame["method"] == method)]
            first = method == methods[0]
            if classes[dataset] <= FEW_CLASSES:
                image = _matrix(axis, cells, classes[dataset], first)
            else:
                _list(axis, cells)
            if dataset == datasets[0]:
                axis.set_title(method_label(method))
            if first:
                label = dataset_label(dataset).replace(" ", "\n", 1)
                axis.set_ylabel(label, fontweight="bold", fontsize=6.5)
        figure.align_ylabels(axes[:: len(methods)])
        if image is not None:
            place = {"location": "bottom", "shrink": 0.35, "aspect": 30, "pad": 0.02}
            bar = figure.colorbar(image, ax=axes, **place)
            bar.set_label("share of the images of a class")
            bar.outline.set_linewidth(0.4)
    return Drawing("confusions", figure, _caption(results), frame)


def _matrix(axis: Axes, cells: pd.DataFrame, size: int, named: bool) -> AxesImage:
    """Draw a row per class and a column per class that it was taken for, and return the image.

    `size` is the number of classes, whose names are written if `named` is true.
    """
    shares = np.zeros((size, size))
    shares[cells["label"], cells["predicted_label"]] = cells["share"]
    image = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axis.grid(visible=False)
    axis.set_xticks([])
    axis.spines[:].set(visible=True, color="#999999", linewidth=0.4)
    if named:
        names = dict(zip(cells["label"], cells["class"], strict=True))
        axis.set_yticks(range(size), [_short(names.get(label, "")) for label in range(size)])
    else:
        axis.set_yticks([])
    axis.tick_params(length=0, labelsize=min(6.0, 72 / size), pad=1.5)
    return image


def _list(axis: Axes, cells: pd.DataFrame) -> None:
    """Draw the most frequent confusions as bars, each with its classes and its share on it."""
    wrong = cells[cells["label"] != cells["predicted_label"]]
    listed = wrong.sort_values("share", ascending=False, kind="stable")[:LISTED]
    axis.barh(range(len(listed)), listed["share"], height=0.86, color="#c6dbef")
    pairs = zip(listed["class"], listed["predicted"], listed["share"], strict=True)
    for position, (true, predicted, share) in enumerate(pairs):
        text = f"{_short(true)} → {_short(predicted)}"
        axis.text(0.01, position, text, va="center", fontsize=4.8)
        axis.text(0.99, position, f"{share:.0%}", va="center", ha="right", fontsize=4.8)
    axis.set(xlim=(0, 1), ylim=(LISTED - 0.4, -0.6), xticks=[], yticks=[])
    axis.grid(visible=False)
    axis.spines[:].set_visible(False)


def _short(name: str, length: int = 16) -> str:
    text = name.replace("_", " ")
    return text if len(text) <= length else f"{text[: length - 1].rstrip()}…"


def _caption(results: Results) -> str:
    missing = untested_runs(results)
    return caption_of(
        results.study,
        f"What is taken for what, with {formats.shots(results.study.shots[-1])} per class, over "
        "the test images of all seeds. Matrices: a row per class, a column per class that it is "
        "taken for, in the same order; the diagonal is right. Datasets of more than "
        f"{FEW_CLASSES} classes: the {LISTED} most frequent confusions, as shares of the images of "
        f"the class on the left. Measured.{f' {len(missing)} runs are missing.' * bool(missing)}",
    )
