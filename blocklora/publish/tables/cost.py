"""Tables of cost: what the runs took, and what the formulas say for ranks and blocks."""

from pathlib import Path

import pandas as pd

from blocklora.publish import formats
from blocklora.publish.published import dataset_label, method_label
from blocklora.publish.render import Section, Table, cells
from blocklora.publish.results import Results, caption_of, read_table
from blocklora.study.model import Study
from blocklora.study.pairs import block_pairs

EFFICIENCY_COLUMNS = (
    "backbone",
    "dataset",
    "classes",
    "method",
    "rank",
    "blocks",
    "partition",
    "parameters",
    "adapter_bytes",
    "optimizer_bytes",
    "flops_per_step_formula",
    "flops_per_step_counted",
    "peak_memory_bytes",
    "memory_kind",
    "step_seconds",
    "run_seconds",
)


def cost_per_method(results: Results) -> pd.DataFrame:
    """Return what the runs of each backbone and adapter method took.

    Columns: backbone, method, rank, blocks, partition, parameters, share_of_lora (fraction, NaN
    where the study has no LoRA of the same settings), adapter_bytes, peak_memory_bytes (largest
    of all runs), planned_memory_bytes (largest), step_seconds (median), wall_seconds (sum), runs.
    """
    runs = results.runs[results.runs["shots"] > 0]
    grouped = runs.groupby(["backbone", "method"], sort=False)
    frame = grouped.agg(
        rank=("rank", "first"),
        blocks=("blocks", "first"),
        partition=("partition", "first"),
        parameters=("trainable_parameters", "first"),
        adapter_bytes=("adapter_bytes", "max"),
        peak_memory_bytes=("peak_memory_bytes", "max"),
        planned_memory_bytes=("planned_memory_bytes", "max"),
        step_seconds=("step_seconds", "median"),
        wall_seconds=("wall_seconds", "sum"),
        runs=("seed", "size"),
    ).reset_index()
    lora = dict(block_pairs(results.study))
    parameters = frame.set_index(["backbone", "method"])["parameters"]
    base = [
        parameters.get((row.backbone, lora.get(row.method)), float("nan"))
        for row in frame.itertuples()
    ]
    frame.insert(6, "share_of_lora", frame["parameters"] / base)
    return frame


def cost_table(results: Results) -> Table:
    """Return the table of parameters, memory and time per method, measured on the runs."""
    frame = cost_per_method(results)
    sections = []
    for backbone, group in frame.groupby("backbone", sort=False):
        rows = [
            cells(
                method_label(row.method),
                f"{row.rank:.0f}",
                f"{row.blocks:.0f}",
                formats.count(row.parameters),
                formats.DASH if pd.isna(row.share_of_lora) else f"{row.share_of_lora:.1%}",
                formats.size(row.adapter_bytes),
                formats.size(row.peak_memory_bytes),
                formats.size(row.planned_memory_bytes),
                formats.duration(row.step_seconds),
                formats.duration(row.wall_seconds),
            )
            for row in group.itertuples()
        ]
        sections.append(Section(backbone, rows))
    devices = sorted(set(results.runs["device_name"].dropna().astype(str)))
    notes = [
        f"Runs on: {', '.join(devices)}." if devices else None,
        results.missing_note([run for run in results.missing if run.shots]),
    ]
    return Table(
        name="cost",
        caption=caption_of(
            results.study,
            "Trainable parameters (also as a share of LoRA's at the same rank), adapter file, "
            "largest peak memory of a run, median time of a training step, and time of all runs "
            "together. Measured, except for the planned memory, which is derived from shapes.",
        ),
        columns=[
            "method",
            "rank r",
            "blocks n",
            "parameters",
            "of LoRA",
            "adapter file",
            "peak memory",
            "planned memory",
            "step",
            "all runs",
        ],
        sections=sections,
        data=frame,
        notes=[note for note in notes if note],
    )


def read_efficiency(path: Path) -> pd.DataFrame:
    """Return `efficiency.csv`.

    Raises:
        UserError: it is missing or lacks a column.
    """
    return read_table(path, EFFICIENCY_COLUMNS)


def largest_task(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of each backbone's dataset with the most classes, where cost is highest."""
    first = frame.sort_values("classes", ascending=False, kind="stable")
    chosen = first.groupby("backbone", sort=False)["dataset"].first()
    return frame[frame["dataset"] == frame["backbone"].map(chosen)]


def efficiency_table(study: Study, path: Path) -> Table:
    """Return the cost of LoRA and Block-LoRA over ranks and blocks.

    The view shows the dataset with the most classes; the CSV form holds all of them.
    """
    frame = read_efficiency(path)
    sections = []
    shown = largest_task(frame)
    for (backbone, dataset), group in shown.groupby(["backbone", "dataset"], sort=False):
        rows = [
            cells(
                method_label(row.method),
                f"{row.rank}",
                f"{row.blocks}",
                formats.DASH if row.blocks == 1 else row.partition,
                formats.count(row.parameters),
                formats.size(row.adapter_bytes),
                formats.size(row.optimizer_bytes),
                formats.number(row.flops_per_step_formula / 1e9, 4),
                formats.number(row.flops_per_step_counted / 1e9, 4),
                _memory(row),
                formats.duration(row.step_seconds),
                formats.duration(row.run_seconds),
            )
            for row in group.itertuples()
        ]
        classes = group["classes"].iloc[0]
        sections.append(Section(f"{backbone}, {dataset_label(dataset)} ({classes} classes)", rows))
    return Table(
        name="efficiency",
        caption=caption_of(
            study,
            "Cost of LoRA (one block) and Block-LoRA over ranks and blocks, for the dataset with "
            "the most classes. Parameters, bytes and FLOPs of a training step are derived from "
            "the model's shapes, FLOPs also counted by PyTorch; memory says how it was obtained.",
        ),
        columns=[
            "method",
            "rank r",
            "blocks n",
            "partition",
            "parameters",
            "adapter file",
            "optimizer state",
            "GFLOPs by formula",
            "GFLOPs counted",
            "peak memory",
            "step",
            "run",
        ],
        sections=sections,
        data=frame,
        notes=["Every dataset is in the CSV form of this table."],
    )


def _memory(row: tuple) -> str:
    text = formats.size(row.peak_memory_bytes)
    return text if text == formats.DASH else f"{text} ({row.memory_kind})"
