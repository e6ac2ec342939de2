"""Tables of cost: what the runs took, and what the formulas say for ranks and blocks."""

from math import nan
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
    "planned_memory_bytes",
)


def cost_per_method(results: Results) -> pd.DataFrame:
    """Return what the runs of each backbone and adapter method took.

    Columns: backbone, method, rank, blocks, partition, parameters, share_of_lora (fraction, NaN
    where the study has no LoRA of the same settings), adapter_bytes, peak_memory_bytes (largest
    of all runs), step_seconds (median), longest_seconds (of a run), wall_seconds (of all runs),
    energy_joules (of all runs, NaN where a run has none), runs.
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
        step_seconds=("step_seconds", "median"),
        longest_seconds=("wall_seconds", "max"),
        wall_seconds=("wall_seconds", "sum"),
        energy_joules=("energy_joules", lambda values: values.sum(skipna=False)),
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


def planned_memory(methods: pd.DataFrame, efficiency: pd.DataFrame) -> pd.Series:
    """Return the planned memory of methods, in bytes, on the dataset with the most classes.

    Args:
        methods: backbone, rank, blocks and partition of each.
        efficiency: rows of `efficiency.csv`; a method whose rank and blocks it lacks gets NaN.
    """
    rows = largest_task(efficiency)
    planned = dict(zip(_settings(rows), rows["planned_memory_bytes"], strict=True))
    found = [planned.get(settings, nan) for settings in _settings(methods)]
    return pd.Series(found, index=methods.index, dtype=float)


def _settings(frame: pd.DataFrame) -> list[tuple[str, int, int, str]]:
    """Return what tells the steps of methods apart; with one block there is no partition."""
    partitions = frame["partition"].where(frame["blocks"] > 1, "")
    return list(zip(frame["backbone"], frame["rank"], frame["blocks"], partitions, strict=True))


def cost_table(results: Results, efficiency_path: Path) -> Table:
    """Return the table of parameters, memory, time and energy per method, measured on the runs.

    The planned memory stands beside the measured one.

    Raises:
        UserError: `efficiency.csv` is missing or lacks a column.
    """
    frame = cost_per_method(results)
    planned = planned_memory(frame, read_efficiency(efficiency_path))
    frame.insert(frame.columns.get_loc("step_seconds"), "planned_memory_bytes", planned)
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
                formats.duration(row.longest_seconds),
                formats.duration(row.wall_seconds),
                formats.energy(row.energy_joules),
            )
            for row in group.itertuples()
        ]
        sections.append(Section(backbone, rows))
    devices = sorted(set(results.runs["device_name"].dropna().astype(str)))
    notes = [
        f"Runs on: {', '.join(devices)}." if devices else None,
        "Peak memory is that of tensors on a GPU, which is what is planned, and that of the whole "
        "process on a CPU. Energy is that of the GPU by its driver; a dash where none reports it.",
        results.missing_note([run for run in results.missing if run.shots]),
    ]
    return Table(
        name="cost",
        caption=caption_of(
            results.study,
            "Trainable parameters (also as a share of LoRA's at the same rank), adapter file, "
            "largest peak memory of a run, median time of a training step, time of the longest "
            "run and of all runs together, and their energy. Measured, except for the planned "
            "memory: that of a training step on the dataset with the most classes, derived from "
            "shapes.",
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
            "longest run",
            "all runs",
            "energy",
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
                formats.size(row.planned_memory_bytes),
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
            "the model's shapes, FLOPs also counted by PyTorch; memory is planned: that of the "
            "tensors of a step at their peak. Nothing here is measured on a device.",
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
            "planned memory",
        ],
        sections=sections,
        data=frame,
        notes=["Every dataset is in the CSV form of this table."],
    )
