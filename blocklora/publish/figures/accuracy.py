"""The figure of accuracy over shots: a panel per dataset and one for their average."""

from math import ceil, log2

import pandas as pd
from matplotlib.axes import Axes

from blocklora.publish.cells import measured_cells, published_cells
from blocklora.publish.figures.canvas import (
    DASHES,
    MARKERS,
    Drawing,
    choose_backbone,
    draw_methods,
    panels,
)
from blocklora.publish.published_accuracies import AVERAGE, dataset_label, names, published_backbone
from blocklora.publish.results import Results, caption_of
from blocklora.study.study import Study

PANELS_PER_ROW = 4
PUBLISHED_LOOK = {
    "color": "#777777",
    "linewidth": 0.8,
    "markersize": 2.8,
    "markerfacecolor": "white",
    "markeredgewidth": 0.6,
}
DATA_COLUMNS = [
    *("backbone", "dataset", "method", "shots", "mean", "std", "low", "high"),
    *("seeds", "kind", "source"),
]


def accuracy_figure(
    results: Results, backbone: str | None = None, published: bool = False
) -> Drawing:
    """Draw accuracy over shots and, if `published` is true, the published values of some methods.

    Raises:
        UserError: The study has more methods than can be told apart.
    """
    study, cells = results.study, measured_cells(results)
    backbone = choose_backbone(study, backbone)
    cells = cells[cells["backbone"] == backbone]
    if published:
        extra = published_cells(study, backbone)
        extra = extra[extra["method"].isin(names()["figure_methods"]) & (extra["shots"] > 0)]
        cells = pd.concat([cells, extra], ignore_index=True)
    shown = [*study.datasets, AVERAGE]
    rows = ceil(len(shown) / PANELS_PER_ROW)
    columns = ceil(len(shown) / rows)
    with panels(study, 0.55 + 1.5 * rows, rows, columns) as (figure, axes):
        for axis, dataset in zip(axes, shown, strict=False):
            _panel(axis, cells[cells["dataset"] == dataset], study)
            weight = "bold" if dataset == AVERAGE else "normal"
            axis.set_title(dataset_label(dataset), fontweight=weight)
        for axis in axes[len(shown) :]:
            axis.set_axis_off()
        for axis in axes[max(0, len(shown) - columns) : len(shown)]:
            axis.set_xlabel("images per class")
        figure.supylabel("test accuracy (%)", fontsize=7.5)
    caption = caption_of(study, _caption(results, backbone, cells))
    return Drawing("accuracy", figure, caption, cells[DATA_COLUMNS])


def _position(shots: int) -> float:
    """Return the place of a shot count on a logarithmic axis; zero-shot is one step before 1."""
    return log2(shots) + 1 if shots else 0


def _panel(axis: Axes, cells: pd.DataFrame, study: Study) -> None:
    cells = cells.assign(
        at=cells["shots"].map(_position),
        lower=cells["mean"] - cells["std"],
        upper=cells["mean"] + cells["std"],
    )
    measured = cells[cells["kind"] == "measured"]
    draw_methods(axis, study, measured, "at", ("mean", "lower", "upper"), zorder=3)
    published = cells[cells["kind"] != "measured"]
    for number, label in enumerate(names()["figure_methods"]):
        line = published[published["label"] == label]
        if len(line):
            look = PUBLISHED_LOOK | {"linestyle": DASHES[number], "marker": MARKERS[number]}
            axis.plot(line["at"], line["mean"], label=f"{label} (published)", **look)
    ticks = [0, *study.shots]
    axis.set_xticks([_position(shots) for shots in ticks], [str(shots) for shots in ticks])
    axis.margins(x=0.06)


def _caption(results: Results, backbone: str, cells: pd.DataFrame) -> str:
    name = published_backbone(results.study, backbone) or backbone
    seeds = len(results.study.seeds)
    spread = (
        f"mean and standard deviation (band) over {seeds} seeds" if seeds > 1 else "a single seed"
    )
    text = f"Test accuracy against training images per class (0: zero-shot), {name}; "
    text += f"measured, {spread}."
    if (cells["kind"] != "measured").any():
        text += " Grey lines with open markers are published values, not measured here."
    missing = [run for run in results.missing if run.backbone == backbone]
    if missing:
        text += f" {len(missing)} runs are missing."
    return text
