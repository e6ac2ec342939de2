"""Figures of generalization bounds beside measured gaps, and of the spectra of trained updates."""

from itertools import product

import pandas as pd
from matplotlib.axes import Axes

from blocklora.adapters.config import TOWERS
from blocklora.publish.figures.canvas import Drawing, choose_backbone, draw_methods, panels
from blocklora.publish.results import Results, caption_of
from blocklora.study.study import Study

SPECTRA = ("effective_rank", "spectral_norm")


def bounds_figure(results: Results, backbone: str | None = None) -> Drawing:
    """Draw the bound, the measured gap and the parameters per training image over shots."""
    study, bounds = results.study, results.theory("bounds")
    bounds = bounds.assign(per_image=bounds["parameters"] / bounds["samples"])
    series = [
        _spread(bounds, "bound", "bound"),
        _spread(bounds, "per_image", "parameters per image"),
    ]
    if results.has("gaps"):
        series.append(_spread(results.theory("gaps"), "gap", "measured gap"))
    known = [rows for rows in series if len(rows)]
    data = pd.concat(known or series, ignore_index=True)
    is_shown = data["backbone"] == choose_backbone(study, backbone)
    data = data[is_shown & data["method"].isin(study.methods)]
    with panels(study, 2.6, 1, 3) as (figure, axes):
        bound, gap, parameters = axes
        _over_shots(bound, data, "bound", study)
        bound.axhline(1, color="black", linewidth=0.8)
        at = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
        bound.annotate("above 1: vacuous", (0.03, 1), (0, 3), fontsize=6, **at)
        bound.set(yscale="log", ylabel="bound of the gap")
        bound.set_ylim(bottom=0.5)
        _over_shots(gap, data, "measured gap", study)
        gap.axhline(0, color="black", linewidth=0.6)
        gap.set_ylabel("gap (train − test accuracy)")
        _over_shots(parameters, data, "parameters per image", study)
        parameters.set(yscale="log", ylabel="parameters per training image")
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


def _over_shots(axis: Axes, data: pd.DataFrame, quantity: str, study: Study) -> None:
    chosen = data[data["quantity"] == quantity]
    draw_methods(axis, study, chosen, "shots", ("median", "low", "high"))
    axis.set_xscale("log", base=2)
    axis.set_xticks(study.shots, [str(count) for count in study.shots])
    axis.set_xlabel("images per class")


def spectra_figure(results: Results, backbone: str | None = None) -> Drawing:
    """Draw the effective rank and spectral norm of trained updates over layers, for each tower."""
    study, frame = results.study, results.theory("spectra")
    frame = frame[frame["backbone"] == choose_backbone(study, backbone)]
    # Without rows, these columns are of type object, which has no quantiles.
    updates = frame.astype(dict.fromkeys(SPECTRA, float))
    updates = updates.groupby(["method", "tower", "layer"], sort=False)
    quartiles = {"low": 0.25, "median": 0.5, "high": 0.75}
    data = pd.concat(
        {
            f"{column}_{name}": updates[column].quantile(share)
            for column in SPECTRA
            for name, share in quartiles.items()
        },
        axis=1,
    ).reset_index()
    towers = list(dict.fromkeys(data["tower"])) or list(TOWERS)
    with panels(study, 3.6, 2, len(towers)) as (figure, axes):
        for axis, (column, tower) in zip(axes, product(SPECTRA, towers), strict=True):
            fields = (f"{column}_median", f"{column}_low", f"{column}_high")
            draw_methods(axis, study, data[data["tower"] == tower], "layer", fields)
            axis.xaxis.get_major_locator().set_params(integer=True)
        for axis, tower in zip(axes, towers, strict=False):
            axis.set_title(f"{tower} tower")
        for axis in axes[len(towers) :]:
            axis.set_xlabel("layer")
        for axis, column in zip(axes[:: len(towers)], SPECTRA, strict=True):
            axis.set_ylabel(column.replace("_", " "))
    caption = caption_of(
        study,
        "Effective rank (top) and spectral norm (bottom) of the trained updates s·ΔW over the "
        "layers of each tower: median and quartiles (band) over matrices, datasets, shots and "
        "seeds. Measured.",
    )
    return Drawing("spectra", figure, caption, data)
