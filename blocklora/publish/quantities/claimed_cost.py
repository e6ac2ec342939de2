"""Quantities of parameters, operations, memory and time.

Each function raises `NotTestedError` if the results do not suffice. The table of claims prints the
first line of its docstring.
"""

from collections.abc import Callable

import pandas as pd

from blocklora.publish import formats
from blocklora.publish.evidence import Measured, NotTestedError, measure, require
from blocklora.publish.published_accuracies import (
    backbones_published_as,
    dataset_label,
    is_published_clip_lora,
    method_label,
)
from blocklora.publish.results import Results
from blocklora.publish.tables.cost import cost_per_method

VIT_B16 = "ViT-B-16-quickgelu"


def parameter_share_error(results: Results) -> Measured:
    """Largest distance of Block-LoRA's share of LoRA's parameters from (1 + 1/n) / 2."""
    shares = _shares(results)
    expected = (1 + 1 / shares["blocks"]) / 2
    return _share((shares["share_of_lora"] - expected).abs().max(), shares)


def largest_parameter_share(results: Results) -> Measured:
    """Largest share of LoRA's parameters that a Block-LoRA method trains."""
    shares = _shares(results)
    return _share(shares["share_of_lora"].max(), shares)


def _shares(results: Results) -> pd.DataFrame:
    frame = cost_per_method(results)
    frame = frame[frame["share_of_lora"].notna() & (frame["blocks"] > 1)]
    return require(frame, "needs runs of a Block-LoRA and a LoRA of the same rank")


def _share(value: float, shares: pd.DataFrame) -> Measured:
    rows = list(shares.itertuples())
    parts = [
        f"{method_label(row.method)} (n = {row.blocks:.0f}): {row.share_of_lora:.1%}"
        for row in rows
    ]
    numbers = {f"{row.method} on {row.backbone}": float(row.share_of_lora) for row in rows}
    text = f"{', '.join(dict.fromkeys(parts))} of LoRA's parameters"
    return Measured(float(value), text, numbers)


def largest_parameter_saving(results: Results) -> Measured:
    """Largest share of LoRA's parameters that Block-LoRA of any number of blocks saves."""
    ratios = _ratios(results, "parameters")
    row = ratios.loc[ratios["ratio"].idxmin()]
    saving = 1 - float(row["ratio"])
    where = f"r = {row['rank']}, n = {row['blocks']}, {row['backbone']}"
    return Measured(saving, f"{saving:.1%} saved at most ({where})")


def largest_flops_share(results: Results) -> Measured:
    """Largest ratio of Block-LoRA's operations per step to those of LoRA of the same rank."""
    ratios = _ratios(results, "flops_per_step_formula")
    return _ratio(ratios, "max", "of LoRA's operations per step at most")


def smallest_flops_share(results: Results) -> Measured:
    """Smallest ratio of Block-LoRA's operations per step to those of LoRA of the same rank."""
    ratios = _ratios(results, "flops_per_step_formula")
    return _ratio(ratios, "min", "of LoRA's operations per step at least")


def smallest_memory_share(results: Results) -> Measured:
    """Smallest ratio of Block-LoRA's planned peak memory to that of LoRA of the same rank."""
    ratios = _ratios(results, "planned_memory_bytes")
    return _ratio(ratios, "min", "of LoRA's peak memory at least")


def _ratios(results: Results, column: str) -> pd.DataFrame:
    """Return the rows of Block-LoRA in efficiency.csv, with the ratio of `column` to that of LoRA.

    The LoRA is that of the same backbone, dataset and rank.

    Raises:
        NotTestedError: There are no such rows.
    """
    frame = measure(results, "efficiency")
    task = ["backbone", "dataset", "rank"]
    lora = frame[frame["blocks"] == 1].drop_duplicates(task).set_index(task)[column]
    blocks = frame[frame["blocks"] > 1].join(lora.rename("lora"), on=task)
    blocks = blocks.assign(ratio=blocks[column] / blocks["lora"]).dropna(subset="ratio")
    return require(blocks, f"needs {column} of Block-LoRA and of LoRA at the same rank")


def _ratio(ratios: pd.DataFrame, extreme: str, words: str) -> Measured:
    row = ratios.loc[ratios["ratio"].agg(f"idx{extreme}")]
    dataset = dataset_label(row["dataset"])
    where = f"r = {row['rank']}, n = {row['blocks']}, {dataset}, {row['backbone']}"
    numbers = {"smallest": float(ratios["ratio"].min()), "largest": float(ratios["ratio"].max())}
    return Measured(float(row["ratio"]), f"{row['ratio']:.2%} {words} ({where})", numbers)


def block_lora_imagenet_memory(results: Results) -> Measured:
    """Largest peak memory of Block-LoRA on ImageNet, in GB: measured on a GPU, else planned."""
    return _imagenet_memory(results, lambda blocks: blocks > 1)


def lora_imagenet_memory(results: Results) -> Measured:
    """Largest peak memory of LoRA on ImageNet, in GB: measured on a GPU, else planned."""
    return _imagenet_memory(results, lambda blocks: blocks == 1)


def _imagenet_memory(results: Results, chosen: Callable[[pd.Series], pd.Series]) -> Measured:
    runs = results.runs
    for kind, frame, column in (
        ("measured", runs[runs["device"] == "cuda"], "peak_memory_bytes"),
        ("planned", measure(results, "efficiency"), "planned_memory_bytes"),
    ):
        frame = frame[(frame["dataset"] == "imagenet") & chosen(frame["blocks"])]
        if len(frame):
            row = frame.loc[frame[column].idxmax()]
            size = float(row[column]) / 1e9
            where = f"r = {row['rank']:.0f}, n = {row['blocks']:.0f}, {row['backbone']}"
            return Measured(size, f"{size:.2f} GB {kind} ({where})")
    raise NotTestedError("needs the peak memory of a training on ImageNet's 1000 classes")


def clip_lora_parameters(results: Results) -> Measured:
    """Trained parameters of LoRA of rank 2 on ViT-B/16."""
    frame = measure(results, "efficiency")
    chosen = frame[(frame["backbone"] == VIT_B16) & (frame["rank"] == 2) & (frame["blocks"] == 1)]
    chosen = require(chosen, "needs ViT-B/16 with LoRA of rank 2")
    count = int(chosen["parameters"].iloc[0])
    return Measured(count, formats.count(count))


def clip_lora_imagenet_minutes(results: Results) -> Measured:
    """Minutes of the longest run of CLIP-LoRA on ImageNet with 16 shots, including its tests."""
    study, runs = results.study, results.runs
    methods = [name for name in study.methods if is_published_clip_lora(study, name)]
    chosen = runs[
        runs["backbone"].isin(backbones_published_as(study, "ViT-B/16"))
        & runs["method"].isin(methods)
        & (runs["dataset"] == "imagenet")
        & (runs["shots"] == 16)
    ]
    chosen = require(chosen, "needs a run of CLIP-LoRA on ImageNet with 16 shots and ViT-B/16")
    row = chosen.loc[chosen["wall_seconds"].idxmax()]
    minutes = float(row["wall_seconds"]) / 60
    return Measured(minutes, f"{minutes:.1f} min on {row['device_name']}")
