"""Quantities of accuracy in points, compared with published numbers or with LoRA.

Each function raises `NotTestedError` if the results do not suffice. The table of claims prints the
first line of its docstring.
"""

import pandas as pd

from blocklora.publish import formats
from blocklora.publish.cells import all_published_cells, measured_cells
from blocklora.publish.evidence import Measured, NotTestedError, require
from blocklora.publish.published_accuracies import (
    AVERAGE,
    backbones_published_as,
    dataset_label,
    is_published_clip_lora,
    method_label,
)
from blocklora.publish.results import Results
from blocklora.publish.tables.differences import ALL_SHOTS, calibrate, compare_pairs
from blocklora.study.pairs import Pairs, block_pairs, merged_pairs

PROMPT_LEARNERS = ("PromptSRC", "MaPLe", "MaPLe [PromptSRC paper]")
WEAK_SPOTS = ("food101", "oxford_pets")
FLOWERS_PLAIN_PROMPT = 67.4  # percent; MaxZanella/CLIP-LoRA issue 1


def margin_to_best_published(results: Results) -> Measured:
    """Smallest lead of Block-LoRA's average over the best published average of any method."""
    return _smallest_margin(results, all_published_cells(results.study))


def margin_to_prompt_learners(results: Results) -> Measured:
    """Smallest lead of Block-LoRA's average over those of PromptSRC and MaPLe."""
    published = all_published_cells(results.study)
    return _smallest_margin(results, published[published["method"].isin(PROMPT_LEARNERS)])


def _smallest_margin(results: Results, published: pd.DataFrame) -> Measured:
    """Return the smallest lead over the best published average, in points, over all shot counts.

    The Block-LoRA method with the highest average counts, for each backbone and shot count.

    Raises:
        NotTestedError: A Block-LoRA method has no average for some shot count, or no published
            average has a shot count of the study.
    """
    blocks = {block for block, _ in block_pairs(results.study)}
    cells = measured_cells(results)
    cells = cells[cells["method"].isin(blocks) & (cells["dataset"] == AVERAGE)]
    if cells.empty or cells["mean"].isna().any():
        raise NotTestedError("needs every run of Block-LoRA")
    at = ["backbone", "shots"]
    ours = cells.groupby(at, sort=False)["mean"].max().rename("ours").reset_index()
    peers = published[published["dataset"] == AVERAGE]
    best = peers.loc[peers.groupby(at)["mean"].idxmax(), [*at, "label", "mean"]]
    compared = require(ours.merge(best, on=at), "needs shot counts of the published tables")
    margins = {
        f"{formats.shots(row.shots)}, against {row.label}": row.ours - row.mean
        for row in compared.itertuples()
    }
    worst = min(margins, key=margins.get)
    return Measured(margins[worst], f"{formats.signed(margins[worst])} ({worst})", margins)


def _intervals(results: Results, pairs: Pairs, partner: str) -> pd.DataFrame:
    """Return the comparisons of pairs over all shot counts that have a bootstrap interval.

    Raises:
        NotTestedError: Runs are missing, or there are no such comparisons. The message then calls
            the LoRA of the pairs `partner`.
    """
    if results.missing:
        raise NotTestedError(f"needs every run; {len(results.missing)} are missing")
    frame = compare_pairs(results, pairs)
    frame = frame[(frame["shots"] == ALL_SHOTS) & frame["bootstrap_low"].notna()]
    return require(frame, f"needs a Block-LoRA and {partner} on 2 datasets")


def accuracy_advantage(results: Results) -> Measured:
    """Lower end of the 95% interval of Block-LoRA minus LoRA, averaged over shots and datasets.

    If there are several pairs, the lowest end counts.
    """
    frame = _intervals(results, block_pairs(results.study), "a LoRA of the same settings")
    row = frame.loc[frame["bootstrap_low"].idxmin()]
    names = ["difference", "bootstrap_low", "bootstrap_high", "permutation_p"]
    numbers = row[names].astype(float).to_dict()
    return Measured(numbers["bootstrap_low"], _difference(row), numbers)


def _difference(row: pd.Series) -> str:
    interval = formats.interval(row["bootstrap_low"], row["bootstrap_high"])
    return f"{formats.signed(row['difference'])}, 95% {interval}"


def distance_from_merged(results: Results) -> Measured:
    """Largest distance from zero in the 95% interval of Block-LoRA minus LoRA of merged arms."""
    frame = _intervals(results, merged_pairs(results.study), "the LoRA of its merged arms")
    reach = frame[["bootstrap_low", "bootstrap_high"]].abs().max(axis=1)
    row = frame.loc[reach.idxmax()]
    text = f"{_difference(row)} at the widest ({method_label(row['method'])})"
    differences = {
        f"{row.method} on {row.backbone}": float(row.difference) for row in frame.itertuples()
    }
    return Measured(float(reach.max()), text, differences)


def calibration_error(results: Results) -> Measured:
    """Mean absolute difference of our CLIP-LoRA from the published one, over cells."""
    frame = calibrate(results)
    frame = frame[(frame["dataset"] != AVERAGE) & frame["difference"].notna()]
    frame = require(frame, "needs runs with the settings of CLIP-LoRA")
    error = float(frame["difference"].abs().mean())
    numbers = {"mean": float(frame["difference"].mean()), "cells": len(frame)}
    return Measured(error, f"{error:.2f} points over {len(frame)} cells", numbers)


def zero_shot_flowers_error(results: Results) -> Measured:
    """Distance of our zero-shot accuracy on Oxford Flowers 102 from that of the plain prompt."""
    study, runs = results.study, results.runs
    chosen = runs[
        (runs["method"] == study.zero_shot)
        & (runs["dataset"] == "oxford_flowers")
        & runs["backbone"].isin(backbones_published_as(study, "ViT-B/16"))
    ]
    chosen = require(chosen, "needs the zero-shot run on Oxford Flowers 102 with ViT-B/16")
    accuracy = 100 * float(chosen["test_accuracy"].iloc[0])
    return Measured(abs(accuracy - FLOWERS_PLAIN_PROMPT), f"{accuracy:.1f}%")


def clip_lora_weak_spots(results: Results) -> Measured:
    """Largest lead of our CLIP-LoRA with 16 shots over the best published method, on two datasets.

    Published accuracies of CLIP-LoRA itself, and of reruns of it, are left out.
    """
    study = results.study
    cells = measured_cells(results)
    ours = cells[
        cells["method"].map(lambda method: is_published_clip_lora(study, method))
        & (cells["shots"] == 16)
        & cells["dataset"].isin(WEAK_SPOTS)
        & cells["mean"].notna()
    ]
    ours = require(ours, "needs runs of CLIP-LoRA with 16 shots on Food-101 and Oxford-IIIT Pets")
    published = all_published_cells(study)
    peers = published[(published["shots"] == 16) & ~published["method"].str.startswith("CLIP-LoRA")]
    best = peers.groupby(["backbone", "dataset"])["mean"].max().rename("best")
    compared = ours.join(best, on=["backbone", "dataset"]).dropna(subset="best")
    compared = require(compared, "needs published accuracies of other methods for the backbone")
    leads = {
        f"{dataset_label(row.dataset)}, {row.backbone}": float(row.mean - row.best)
        for row in compared.itertuples()
    }
    listed = "; ".join(f"{where}: {formats.signed(lead)}" for where, lead in leads.items())
    return Measured(max(leads.values()), listed, leads)
