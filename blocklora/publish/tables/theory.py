"""Tables of bounds, compressed adapters and spectra."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from blocklora.publish import formats
from blocklora.publish.published import method_label, names
from blocklora.publish.render import Cell, Section, Table, cells
from blocklora.publish.results import caption_of, read_table
from blocklora.study.model import Study

BOUND_COLUMNS = (
    "backbone",
    "dataset",
    "method",
    "shots",
    "samples",
    "parameters",
    "effective_parameters",
    "bits",
    "bound",
    "effective_bound",
    "ratio_to_lora",
    "effective_ratio_to_lora",
)
GAP_COLUMNS = ("backbone", "dataset", "method", "shots", "seed", "gap", "bound", "vacuous")
COMPRESSION_COLUMNS = (
    "backbone",
    "dataset",
    "method",
    "shots",
    "seed",
    "bits_per_weight",
    "compressed_bits",
    "train_error",
    "guessing_error",
    "bound",
    "vacuous",
)
SPECTRA_COLUMNS = (
    "backbone",
    "dataset",
    "method",
    "shots",
    "seed",
    "tower",
    "layer",
    "matrix",
    "effective_rank",
    "frobenius_norm",
    "spectral_norm",
    "arms_max_relative_difference",
)
OVERLAP_COLUMNS = (
    "backbone",
    "dataset",
    "shots",
    "seed",
    "method",
    "other_method",
    "tower",
    "output_overlap",
    "input_overlap",
    "chance",
)


def bounds_frame(bounds_path: Path, gaps_path: Path | None) -> pd.DataFrame:
    """Return bounds and measured gaps per backbone, method and shot count, over datasets.

    Columns: backbone, method, shots, parameters, effective_parameters, bound_low, bound_high,
    effective_low, effective_high, ratio_to_lora, effective_ratio_to_lora, gap (mean over runs,
    fraction), gap_low, gap_high, vacuous (runs), runs.

    Raises:
        UserError: a file is missing or lacks a column.
    """
    bounds = read_table(bounds_path, BOUND_COLUMNS)
    keys = ["backbone", "method", "shots"]
    frame = bounds.groupby(keys, sort=False).agg(
        parameters=("parameters", "first"),
        effective_parameters=("effective_parameters", "first"),
        bound_low=("bound", "min"),
        bound_high=("bound", "max"),
        effective_low=("effective_bound", "min"),
        effective_high=("effective_bound", "max"),
        ratio_to_lora=("ratio_to_lora", "first"),
        effective_ratio_to_lora=("effective_ratio_to_lora", "first"),
    )
    if gaps_path is None:
        measured = pd.DataFrame(columns=["gap", "gap_low", "gap_high", "vacuous", "runs"])
    else:
        gaps = read_table(gaps_path, GAP_COLUMNS)
        measured = gaps.groupby(keys, sort=False).agg(
            gap=("gap", "mean"),
            gap_low=("gap", "min"),
            gap_high=("gap", "max"),
            vacuous=("vacuous", "sum"),
            runs=("gap", "size"),
        )
    for column in measured.columns:
        frame[column] = measured[column].reindex(frame.index) if len(measured) else float("nan")
    return frame.reset_index()


def variant_label(method: str, study: Study) -> str:
    """Return what tables print for a method of `bounds.csv`, which may be an untrained variant."""
    for ending, words in names()["variants"].items():
        if method not in study.methods and method.endswith(ending):
            return method_label(method.removesuffix(ending)) + words
    return method_label(method)


def bounds_table(study: Study, bounds_path: Path, gaps_path: Path | None) -> Table:
    """Return the table of information-theoretic bounds beside the measured gaps."""
    frame = bounds_frame(bounds_path, gaps_path)
    sections = _by_backbone(
        frame,
        lambda row: cells(
            variant_label(row.method, study),
            f"{row.shots}",
            formats.count(row.parameters),
            formats.count(row.effective_parameters),
            formats.span(row.bound_low, row.bound_high),
            formats.span(row.effective_low, row.effective_high),
            formats.number(row.ratio_to_lora),
            formats.number(row.effective_ratio_to_lora),
            formats.signed(row.gap, 3),
            formats.DASH if pd.isna(row.runs) else f"{row.vacuous:.0f} of {row.runs:.0f}",
        ),
    )
    return Table(
        name="bounds",
        caption=caption_of(
            study,
            "Bound of the generalization gap, sqrt(2 q σ² ln 2 · P / N) (Zhu et al. 2024, "
            "arXiv 2402.16842, Lemma 4.5), lowest to highest over datasets, and the measured gap "
            "(training minus test accuracy, mean over runs). Bounds are derived, gaps measured. "
            "No gap exceeds 1, so a bound of 1 or more is vacuous: it says nothing.",
        ),
        columns=[
            "method",
            "shots",
            "parameters P",
            "effective P",
            "bound",
            "effective bound",
            "ratio to LoRA",
            "effective ratio",
            "measured gap",
            "vacuous runs",
        ],
        sections=sections,
        data=frame,
        notes=[
            "Effective: with the arms of the rank partition merged into one, which changes no "
            "output. Rows without a measured gap are variants that the theory compares: A or B "
            "trained alone, and the other way to cut an adapter into blocks."
        ],
    )


def compression_table(study: Study, path: Path) -> Table:
    """Return the table of bounds from compressed adapters."""
    frame = read_table(path, COMPRESSION_COLUMNS)
    keys = ["backbone", "method", "shots"]
    summary = (
        frame.groupby(keys, sort=False)
        .agg(
            bits_per_weight=("bits_per_weight", "mean"),
            compressed_bits=("compressed_bits", "mean"),
            train_error=("train_error", "mean"),
            guessing_low=("guessing_error", "min"),
            guessing_high=("guessing_error", "max"),
            bound_low=("bound", "min"),
            bound_high=("bound", "max"),
            vacuous=("vacuous", "sum"),
            runs=("bound", "size"),
        )
        .reset_index()
    )
    sections = _by_backbone(
        summary,
        lambda row: cells(
            method_label(row.method),
            f"{row.shots}",
            formats.number(row.bits_per_weight),
            formats.size(row.compressed_bits / 8),
            formats.percent(100 * row.train_error),
            formats.span(row.guessing_low, row.guessing_high),
            formats.span(row.bound_low, row.bound_high),
            f"{row.vacuous} of {row.runs}",
        ),
    )
    return Table(
        name="compression",
        caption=caption_of(
            study,
            "What trained adapters guarantee by their compressed size: bits per weight and size "
            "(means over runs), training error of the compressed adapter in percent, and the "
            "bound of the test error that follows (lowest to highest run), a fraction. Sizes and "
            "errors are measured, bounds derived. A bound is vacuous if it is not below the error "
            "of guessing, 1 − 1/classes: it says nothing.",
        ),
        columns=[
            "method",
            "shots",
            "bits per weight",
            "compressed size",
            "training error",
            "error of guessing",
            "bound of test error",
            "vacuous runs",
        ],
        sections=sections,
        data=summary,
    )


def spectra_table(study: Study, path: Path) -> Table:
    """Return the table of spectra of trained updates per method and tower."""
    frame = read_table(path, SPECTRA_COLUMNS)
    summary = (
        frame.groupby(["backbone", "method", "tower", "shots"], sort=False)
        .agg(
            effective_rank=("effective_rank", "mean"),
            effective_rank_low=("effective_rank", "min"),
            effective_rank_high=("effective_rank", "max"),
            frobenius_norm=("frobenius_norm", "mean"),
            spectral_norm=("spectral_norm", "mean"),
            arms_max_relative_difference=("arms_max_relative_difference", "max"),
            matrices=("matrix", "size"),
        )
        .reset_index()
    )
    sections = _by_backbone(
        summary,
        lambda row: cells(
            method_label(row.method),
            row.tower,
            f"{row.shots}",
            formats.number(row.effective_rank),
            formats.span(row.effective_rank_low, row.effective_rank_high),
            formats.number(row.frobenius_norm),
            formats.number(row.spectral_norm),
            formats.number(row.arms_max_relative_difference),
        ),
    )
    return Table(
        name="spectra",
        caption=caption_of(
            study,
            "Spectra of the trained updates s·ΔW, over matrices and runs: effective rank (the "
            "exponential of the spectrum's entropy), norms, and the largest relative difference "
            "between the arms of one matrix (0: the arms are copies of each other). Measured.",
        ),
        columns=[
            "method",
            "tower",
            "shots",
            "effective rank",
            "lowest to highest",
            "Frobenius norm",
            "spectral norm",
            "arms' difference",
        ],
        sections=sections,
        data=summary,
        text_columns=2,
    )


def overlaps_table(study: Study, path: Path) -> Table:
    """Return the table of how far Block-LoRA and LoRA train the same subspaces."""
    frame = read_table(path, OVERLAP_COLUMNS)
    summary = (
        frame.groupby(["backbone", "method", "other_method", "tower", "shots"], sort=False)
        .agg(
            output_overlap=("output_overlap", "mean"),
            input_overlap=("input_overlap", "mean"),
            chance=("chance", "mean"),
            matrices=("chance", "size"),
        )
        .reset_index()
    )
    sections = _by_backbone(
        summary,
        lambda row: cells(
            f"{method_label(row.method)} and {method_label(row.other_method)}",
            row.tower,
            f"{row.shots}",
            formats.number(row.output_overlap),
            formats.number(row.input_overlap),
            formats.number(row.chance),
        ),
    )
    return Table(
        name="overlaps",
        caption=caption_of(
            study,
            "Overlap of the subspaces that Block-LoRA and LoRA train from the same images and "
            "seed (Hu et al. 2022, arXiv 2106.09685, section 7.2, equation 4): 1 if one contains "
            "the other, 0 if they are orthogonal; means over matrices and runs, measured. Chance "
            "is the overlap of random subspaces of these dimensions, derived.",
        ),
        columns=["methods", "tower", "shots", "output side", "input side", "chance"],
        sections=sections,
        data=summary,
        notes=[
            "Output side: directions in which the update moves a layer's output, on the side of "
            "B. Input side: directions of the input it reacts to, on the side of A."
        ],
        text_columns=2,
    )


def _by_backbone(frame: pd.DataFrame, row: Callable[[Any], list[Cell]]) -> list[Section]:
    """Return a section of each backbone, with what `row` makes of each row of `frame`."""
    return [
        Section(backbone, [row(entry) for entry in group.itertuples()])
        for backbone, group in frame.groupby("backbone", sort=False)
    ]
