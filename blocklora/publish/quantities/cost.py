"""Quantities of parameters, operations, memory and time."""

from collections.abc import Callable

import pandas as pd

from blocklora.publish import formats
from blocklora.publish.evidence import Evidence, Measured, NotTestedError
from blocklora.publish.published import is_published_clip_lora, method_label, published_backbone
from blocklora.publish.tables.cost import cost_per_method

VIT_B16 = "ViT-B-16-quickgelu"


def parameter_share_error(evidence: Evidence) -> Measured:
    """Largest distance of Block-LoRA's share of LoRA's parameters from (1 + 1/n) / 2."""
    shares = _shares(evidence)
    expected = (1 + 1 / shares["blocks"]) / 2
    error = float((shares["share_of_lora"] - expected).abs().max())
    return Measured(error, _listed(shares, "of LoRA's parameters"), _by_method(shares))


def largest_parameter_share(evidence: Evidence) -> Measured:
    """Largest share of LoRA's parameters that a Block-LoRA method trains."""
    shares = _shares(evidence)
    value = float(shares["share_of_lora"].max())
    return Measured(value, _listed(shares, "of LoRA's parameters"), _by_method(shares))


def _shares(evidence: Evidence) -> pd.DataFrame:
    frame = cost_per_method(evidence.results)
    frame = frame[frame["share_of_lora"].notna() & (frame["blocks"] > 1)]
    if frame.empty:
        raise NotTestedError("needs runs of a Block-LoRA and a LoRA of the same rank")
    return frame


def _by_method(shares: pd.DataFrame) -> dict[str, float]:
    return {
        f"{row.method} on {row.backbone}": float(row.share_of_lora) for row in shares.itertuples()
    }


def _listed(shares: pd.DataFrame, of: str) -> str:
    parts = [
        f"{method_label(row.method)} (n = {row.blocks:.0f}): {row.share_of_lora:.1%}"
        for row in shares.itertuples()
    ]
    return f"{', '.join(dict.fromkeys(parts))} {of}"


def largest_parameter_saving(evidence: Evidence) -> Measured:
    """Largest share of LoRA's parameters that Block-LoRA of any number of blocks saves."""
    ratios = _ratios(evidence, "parameters")
    row = ratios.loc[ratios["ratio"].idxmin()]
    saving = 1 - float(row["ratio"])
    where = f"r = {row['rank']}, n = {row['blocks']}, {row['backbone']}"
    return Measured(saving, f"{saving:.1%} saved at most ({where})")


def largest_flops_share(evidence: Evidence) -> Measured:
    """Largest ratio of operations per step, Block-LoRA to LoRA of the same rank."""
    ratios = _ratios(evidence, "flops_per_step_formula")
    return _ratio(ratios, ratios["ratio"].idxmax(), "of LoRA's operations per step at most")


def smallest_flops_share(evidence: Evidence) -> Measured:
    """Smallest ratio of operations per step, Block-LoRA to LoRA of the same rank."""
    ratios = _ratios(evidence, "flops_per_step_formula")
    return _ratio(ratios, ratios["ratio"].idxmin(), "of LoRA's operations per step at least")


def smallest_memory_share(evidence: Evidence) -> Measured:
    """Smallest ratio of planned peak memory, Block-LoRA to LoRA of the same rank."""
    ratios = _ratios(evidence, "planned_memory_bytes")
    return _ratio(ratios, ratios["ratio"].idxmin(), "of LoRA's peak memory at least")


def _ratios(evidence: Evidence, column: str) -> pd.DataFrame:
    """Return the rows of Block-LoRA with their `ratio` to LoRA of the same task and rank."""
    frame = evidence.frame("efficiency")
    task = ["backbone", "dataset", "rank"]
    lora = frame[frame["blocks"] == 1].drop_duplicates(task).set_index(task)[column]
    blocks = frame[frame["blocks"] > 1].join(lora.rename("lora"), on=task)
    blocks = blocks.assign(ratio=blocks[column] / blocks["lora"])
    blocks = blocks[blocks["ratio"].notna()]
    if blocks.empty:
        raise NotTestedError(f"needs {column} of Block-LoRA and of LoRA at the same rank")
    return blocks


def _ratio(ratios: pd.DataFrame, index: int, words: str) -> Measured:
    row = ratios.loc[index]
    where = f"r = {row['rank']}, n = {row['blocks']}, {row['dataset']}, {row['backbone']}"
    numbers = {"smallest": float(ratios["ratio"].min()), "largest": float(ratios["ratio"].max())}
    return Measured(float(row["ratio"]), f"{row['ratio']:.2%} {words} ({where})", numbers)


def block_lora_imagenet_memory(evidence: Evidence) -> Measured:
    """Largest peak memory of Block-LoRA on ImageNet, in GB: measured on a GPU, else planned."""
    return _imagenet_memory(evidence, lambda blocks: blocks > 1)


def lora_imagenet_memory(evidence: Evidence) -> Measured:
    """Largest peak memory of LoRA on ImageNet, in GB: measured on a GPU, else planned."""
    return _imagenet_memory(evidence, lambda blocks: blocks == 1)


def _imagenet_memory(evidence: Evidence, chosen: Callable[[pd.Series], pd.Series]) -> Measured:
    runs = evidence.results.runs
    for kind, frame, column in (
        ("measured", runs[runs["device"] == "cuda"], "peak_memory_bytes"),
        ("planned", evidence.frame("efficiency"), "planned_memory_bytes"),
    ):
        frame = frame[(frame["dataset"] == "imagenet") & chosen(frame["blocks"])]
        if len(frame):
            row = frame.loc[frame[column].idxmax()]
            size = float(row[column]) / 1e9
            where = f"r = {row['rank']:.0f}, n = {row['blocks']:.0f}, {row['backbone']}"
            return Measured(size, f"{size:.2f} GB {kind} ({where})")
    raise NotTestedError("needs the peak memory of a training on ImageNet's 1000 classes")


def clip_lora_parameters(evidence: Evidence) -> Measured:
    """Trained parameters of LoRA of rank 2 on ViT-B/16."""
    frame = evidence.frame("efficiency")
    chosen = frame[(frame["backbone"] == VIT_B16) & (frame["rank"] == 2) & (frame["blocks"] == 1)]
    if chosen.empty:
        raise NotTestedError("needs ViT-B/16 with LoRA of rank 2")
    count = int(chosen["parameters"].iloc[0])
    return Measured(count, formats.count(count))


def clip_lora_imagenet_minutes(evidence: Evidence) -> Measured:
    """Longest run of CLIP-LoRA on ImageNet with 16 shots, in minutes, testing included."""
    study, runs = evidence.study, evidence.results.runs
    backbones = [name for name in study.backbones if published_backbone(study, name) == "ViT-B/16"]
    methods = [name for name in study.methods if is_published_clip_lora(study, name)]
    chosen = runs[runs["backbone"].isin(backbones) & runs["method"].isin(methods)]
    chosen = chosen[(chosen["dataset"] == "imagenet") & (chosen["shots"] == 16)]
    if chosen.empty:
        raise NotTestedError("needs a run of CLIP-LoRA on ImageNet with 16 shots and ViT-B/16")
    row = chosen.loc[chosen["wall_seconds"].idxmax()]
    minutes = float(row["wall_seconds"]) / 60
    return Measured(minutes, f"{minutes:.1f} min on {row['device_name']}")
