"""Quantities of accuracy, in points, measured against published numbers or against LoRA."""

import pandas as pd

from blocklora.publish import formats
from blocklora.publish.accuracy import measured_cells, published_cells
from blocklora.publish.evidence import Evidence, Measured, NotTestedError
from blocklora.publish.published import (
    AVERAGE,
    dataset_label,
    is_published_clip_lora,
    method_label,
    published_backbone,
)
from blocklora.publish.tables.comparison import ALL_SHOTS, calibrate, compare_pairs
from blocklora.study.pairs import Pairs, block_pairs, merged_pairs

PROMPT_LEARNERS = ("PromptSRC", "MaPLe", "MaPLe [PromptSRC paper]")
WEAK_SPOTS = ("food101", "oxford_pets")
FLOWERS_PLAIN_PROMPT = 67.4  # MaxZanella/CLIP-LoRA issue 1


def margin_to_best_published(evidence: Evidence) -> Measured:
    """Smallest lead of Block-LoRA's average over the best published average of any method."""
    return _smallest_margin(evidence, _published(evidence))


def margin_to_prompt_learners(evidence: Evidence) -> Measured:
    """Smallest lead of Block-LoRA's average over those of PromptSRC and MaPLe."""
    published = _published(evidence)
    return _smallest_margin(evidence, published[published["method"].isin(PROMPT_LEARNERS)])


def _smallest_margin(evidence: Evidence, published: pd.DataFrame) -> Measured:
    """Return the smallest margin over shot counts of the best Block-LoRA method of each."""
    blocks = {block for block, _ in block_pairs(evidence.study)}
    cells = measured_cells(evidence.results)
    cells = cells[cells["method"].isin(blocks) & (cells["dataset"] == AVERAGE)]
    if cells.empty or cells["mean"].isna().any():
        raise NotTestedError("needs every run of Block-LoRA")
    margins = {}
    for (backbone, shots), group in cells.groupby(["backbone", "shots"], sort=False):
        peers = published[
            (published["backbone"] == backbone)
            & (published["shots"] == shots)
            & (published["dataset"] == AVERAGE)
        ]
        if len(peers):
            best = peers.loc[peers["mean"].idxmax()]
            margin = float(group["mean"].max() - best["mean"])
            margins[f"{shots} shots, against {best['label']}"] = margin
    if not margins:
        raise NotTestedError("needs shot counts of the published tables")
    worst = min(margins, key=margins.get)
    return Measured(margins[worst], f"{formats.signed(margins[worst])} ({worst})", margins)


def _intervals(evidence: Evidence, pairs: Pairs, partner: str) -> pd.DataFrame:
    """Return the comparisons of pairs over all shots and datasets that have an interval."""
    if evidence.results.missing:
        raise NotTestedError(f"needs every run; {len(evidence.results.missing)} are missing")
    frame = compare_pairs(evidence.results, pairs)
    frame = frame[(frame["shots"] == ALL_SHOTS) & frame["bootstrap_low"].notna()]
    if frame.empty:
        raise NotTestedError(f"needs a Block-LoRA and {partner} on 2 datasets")
    return frame


def accuracy_advantage(evidence: Evidence) -> Measured:
    """Lower end of the interval of Block-LoRA minus LoRA, averaged over shots and datasets."""
    frame = _intervals(evidence, block_pairs(evidence.study), "a LoRA of the same settings")
    row = frame.loc[frame["bootstrap_low"].idxmin()]
    difference = formats.signed(row["difference"])
    interval = formats.interval(row["bootstrap_low"], row["bootstrap_high"])
    numbers = {
        "difference": float(row["difference"]),
        "bootstrap_low": float(row["bootstrap_low"]),
        "bootstrap_high": float(row["bootstrap_high"]),
        "permutation_p": float(row["permutation_p"]),
    }
    return Measured(float(row["bootstrap_low"]), f"{difference}, 95% {interval}", numbers)


def distance_from_merged(evidence: Evidence) -> Measured:
    """Distance from zero that the interval of Block-LoRA minus LoRA of its merged arms reaches."""
    frame = _intervals(evidence, merged_pairs(evidence.study), "the LoRA of its merged arms")
    reach = frame[["bootstrap_low", "bootstrap_high"]].abs().max(axis=1)
    row = frame.loc[reach.idxmax()]
    difference = formats.signed(row["difference"])
    interval = formats.interval(row["bootstrap_low"], row["bootstrap_high"])
    text = f"{difference}, 95% {interval} at the widest ({method_label(row['method'])})"
    differences = {
        f"{row.method} on {row.backbone}": float(row.difference) for row in frame.itertuples()
    }
    return Measured(float(reach.max()), text, differences)


def calibration_error(evidence: Evidence) -> Measured:
    """Mean absolute difference of our CLIP-LoRA from the published one, over cells."""
    frame = calibrate(evidence.results)
    frame = frame[(frame["dataset"] != AVERAGE) & frame["difference"].notna()]
    if frame.empty:
        raise NotTestedError("needs runs with the settings of CLIP-LoRA")
    error = float(frame["difference"].abs().mean())
    numbers = {"mean": float(frame["difference"].mean()), "cells": len(frame)}
    return Measured(error, f"{error:.2f} points over {len(frame)} cells", numbers)


def zero_shot_flowers_error(evidence: Evidence) -> Measured:
    """Distance of our zero-shot accuracy on Flowers102 from that of the plain prompt."""
    study, runs = evidence.study, evidence.results.runs
    backbones = [name for name in study.backbones if published_backbone(study, name) == "ViT-B/16"]
    chosen = runs[
        (runs["method"] == study.zero_shot)
        & (runs["dataset"] == "oxford_flowers")
        & runs["backbone"].isin(backbones)
    ]
    if chosen.empty:
        raise NotTestedError("needs the zero-shot run on Flowers102 with ViT-B/16")
    accuracy = 100 * float(chosen["test_accuracy"].iloc[0])
    return Measured(abs(accuracy - FLOWERS_PLAIN_PROMPT), f"{accuracy:.1f}%")


def clip_lora_weak_spots(evidence: Evidence) -> Measured:
    """Largest lead of our CLIP-LoRA with 16 shots over the best published method, on two datasets.

    The published CLIP-LoRA rows and reruns are no competitors of it.
    """
    study = evidence.study
    cells = measured_cells(evidence.results)
    ours = cells[
        cells["method"].map(lambda method: is_published_clip_lora(study, method))
        & (cells["shots"] == 16)
        & cells["dataset"].isin(WEAK_SPOTS)
        & cells["mean"].notna()
    ]
    if ours.empty:
        raise NotTestedError("needs runs of CLIP-LoRA with 16 shots on Food101 and OxfordPets")
    published = _published(evidence)
    peers = published[(published["shots"] == 16) & ~published["method"].str.startswith("CLIP-LoRA")]
    best = peers.groupby(["backbone", "dataset"])["mean"].max()
    compared = [row for row in ours.itertuples() if (row.backbone, row.dataset) in best.index]
    if not compared:
        raise NotTestedError("needs a backbone of which other methods have been published")
    leads = {
        f"{dataset_label(row.dataset)}, {row.backbone}": float(
            row.mean - best[row.backbone, row.dataset]
        )
        for row in compared
    }
    listed = "; ".join(f"{where}: {formats.signed(lead)}" for where, lead in leads.items())
    return Measured(max(leads.values()), listed, leads)


def _published(evidence: Evidence) -> pd.DataFrame:
    study = evidence.study
    return pd.concat([published_cells(study, backbone) for backbone in study.backbones])
