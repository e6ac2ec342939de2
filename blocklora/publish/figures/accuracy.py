"""Accuracy against shots: a panel per dataset and one for their average."""

from math import ceil, log2

import pandas as pd
from matplotlib.axes import Axes

from blocklora.publish.accuracy import measured_cells, published_cells
from blocklora.publish.figures.canvas import (
    DASHES,
    MARKERS,
    PUBLISHED_GREY,
    Drawing,
    choose_backbone,
    draw_methods,
    panels,
)
from blocklora.publish.published import AVERAGE, dataset_label, names, published_backbone
from blocklora.publish.results import Results, caption_of
from blocklora.study.model import Study

PANELS_PER_ROW = 4
DATA_COLUMNS = [
    *("backbone", "dataset", "method", "shots", "mean", "std", "low", "high"),
    *("seeds", "kind", "source"),
]


def accuracy_figure(
    results: Results, backbone: str | None = None, published: bool = False
) -> Drawing:
    """Draw accuracy against shots for one backbone (the study's only one by default).

    Raises:
        UserError: the study has several backbones and none, or another one, is named.
    """
    backbone = choose_backbone(results.study, backbone)
    study = results.study
    cells = measured_cells(results)
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
    return Drawing("accuracy", figure, _caption(results, backbone, cells), cells[DATA_COLUMNS])


def _position(shots: int) -> float:
    """Return the place of a shot count: logarithmic, with zero-shot one step before 1 shot."""
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
            axis.plot(
                line["at"],
                line["mean"],
                color=PUBLISHED_GREY,
                linewidth=0.8,
                linestyle=DASHES[number],
                marker=MARKERS[number],
                markersize=2.8,
                markerfacecolor="white",
                markeredgewidth=0.6,
                label=f"{label} (published)",
            )
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
    return caption_of(results.study, text)
