"""Figures of bounds against gaps, and of the spectra of trained updates."""

import pandas as pd
from matplotlib.axes import Axes

from blocklora.adapters.config import TOWERS
from blocklora.publish.figures.canvas import (
    Drawing,
    band,
    choose_backbone,
    legend_below,
    mark_miniature,
    method_looks,
    new_figure,
    style,
)
from blocklora.publish.published import method_label
from blocklora.publish.results import Results, caption_of
from blocklora.study.model import Study


def bounds_figure(results: Results, backbone: str | None = None) -> Drawing:
    """Draw bound, measured gap and parameters per training image over shots, per method.

    Raises:
        UserError: a file is missing or lacks a column, or no backbone could be chosen.
    """
    study = results.study
    backbone = choose_backbone(study, backbone)
    bounds = results.theory("bounds")
    bounds = bounds.assign(parameters_per_image=bounds["parameters"] / bounds["samples"])
    series = [
        _spread(bounds, "bound", "bound"),
        _spread(bounds, "parameters_per_image", "parameters per image"),
    ]
    if results.has("gaps"):
        series.append(_spread(results.theory("gaps"), "gap", "measured gap"))
    data = pd.concat(series, ignore_index=True)
    data = data[(data["backbone"] == backbone) & data["method"].isin(study.methods)]
    with style():
        figure, axes = new_figure(2.6, 1, 3)
        _lines(axes[0], data, "bound", study)
        axes[0].axhline(1, color="black", linewidth=0.8)
        axes[0].annotate(
            "above 1: vacuous",
            (0.03, 1),
            (0, 3),
            textcoords="offset points",
            xycoords=("axes fraction", "data"),
            fontsize=6,
        )
        axes[0].set_yscale("log")
        axes[0].set_ylim(bottom=0.5)
        axes[0].set_ylabel("bound of the gap")
        _lines(axes[1], data, "measured gap", study)
        axes[1].axhline(0, color="black", linewidth=0.6)
        axes[1].set_ylabel("gap (train − test accuracy)")
        _lines(axes[2], data, "parameters per image", study)
        axes[2].set_yscale("log")
        axes[2].set_ylabel("parameters per training image")
        legend_below(figure, axes[0], 4)
        mark_miniature(figure, study)
    caption = caption_of(
        study,
        "Left: information-theoretic bound of the generalization gap over training images per "
        "class; a bound of 1 or more says nothing. Middle: measured gap. Right: trained "
        "parameters per training image, on which the bound depends. Lines are medians over "
        "datasets (and seeds), bands run from the lowest to the highest. Bounds are derived, gaps "
        "measured.",
    )
    return Drawing("bounds", figure, caption, data)


def _spread(frame: pd.DataFrame, column: str, quantity: str) -> pd.DataFrame:
    grouped = frame.groupby(["backbone", "method", "shots"], sort=False)[column]
    spread = grouped.agg(median="median", low="min", high="max").reset_index()
    return spread.assign(quantity=quantity)


def _lines(axis: Axes, data: pd.DataFrame, quantity: str, study: Study) -> None:
    chosen = data[data["quantity"] == quantity]
    for method, look in method_looks(study).items():
        line = chosen[chosen["method"] == method].sort_values("shots")
        if len(line):
            axis.plot(line["shots"], line["median"], label=method_label(method), **look)
            band(axis, line["shots"], line["low"], line["high"], look["color"])
    shots = study.shots
    axis.set_xscale("log", base=2)
    axis.set_xticks(shots, [str(count) for count in shots])
    axis.set_xlabel("images per class")


def spectra_figure(results: Results, backbone: str | None = None) -> Drawing:
    """Draw effective rank and norm of the trained updates over layers, a column per tower.

    Raises:
        UserError: the file is missing or lacks a column, or no backbone could be chosen.
    """
    study = results.study
    backbone = choose_backbone(study, backbone)
    frame = results.theory("spectra")
    frame = frame[frame["backbone"] == backbone]
    keys = ["method", "tower", "layer"]
    data = frame.groupby(keys, sort=False).agg(
        **{
            f"{column}_{name}": (column, lambda values, share=share: values.quantile(share))
            for column in ("effective_rank", "spectral_norm")
            for name, share in (("low", 0.25), ("median", 0.5), ("high", 0.75))
        }
    )
    data = data.reset_index()
    towers = list(dict.fromkeys(data["tower"])) or list(TOWERS)
    with style():
        figure, axes = new_figure(3.6, 2, len(towers))
        for number, axis in enumerate(axes):
            column, title = (
                ("effective_rank", "effective rank")
                if number < len(towers)
                else ("spectral_norm", "spectral norm")
            )
            tower = towers[number % len(towers)]
            _layers(axis, data[data["tower"] == tower], column, study)
            axis.set_title(f"{tower} tower" if number < len(towers) else "")
            axis.set_xlabel("layer" if number >= len(towers) else "")
            axis.set_ylabel(title if number % len(towers) == 0 else "")
        legend_below(figure, axes[0], 4)
        mark_miniature(figure, study)
    caption = caption_of(
        study,
        "Effective rank (top) and spectral norm (bottom) of the trained updates s·ΔW over the "
        "layers of each tower: median and quartiles (band) over matrices, datasets, shots and "
        "seeds. Measured.",
    )
    return Drawing("spectra", figure, caption, data)


def _layers(axis: Axes, data: pd.DataFrame, column: str, study: Study) -> None:
    for method, look in method_looks(study).items():
        line = data[data["method"] == method].sort_values("layer")
        if len(line):
            low, middle, high = (line[f"{column}_{name}"] for name in ("low", "median", "high"))
            axis.plot(line["layer"], middle, label=method_label(method), **look)
            band(axis, line["layer"], low, high, look["color"])
    axis.xaxis.get_major_locator().set_params(integer=True)
