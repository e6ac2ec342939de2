"""Tables of cost: measured on the runs, and derived from shapes over ranks and blocks."""

from math import nan

import pandas as pd

from blocklora.publish import formats
from blocklora.publish.description import Description
from blocklora.publish.published_accuracies import dataset_label, method_label
from blocklora.publish.render import Table
from blocklora.publish.results import Results
from blocklora.study.pairs import block_pairs

COST = Description(
    name="cost",
    caption="Trainable parameters (also as a share of LoRA's at the same rank), adapter file, "
    "largest peak memory of a run, median time of a training step, time of the longest "
    "run and of all runs together, and their energy. Measured, except for the planned "
    "memory: that of a training step on the dataset with the most classes, derived from "
    "shapes.",
    keys=("backbone", "method"),
    aggregate={
        "rank": ("rank", "first"),
        "blocks": ("blocks", "first"),
        "partition": ("partition", "first"),
        "parameters": ("trainable_parameters", "first"),
        "adapter_bytes": ("adapter_bytes", "max"),
        "peak_memory_bytes": ("peak_memory_bytes", "max"),
        "step_seconds": ("step_seconds", "median"),
        "longest_seconds": ("wall_seconds", "max"),
        "wall_seconds": ("wall_seconds", "sum"),
        "energy_joules": ("energy_joules", lambda values: values.sum(skipna=False)),
        "runs": ("seed", "size"),
    },
    columns=[
        ("method", "method", method_label),
        ("rank r", "rank", formats.count),
        ("blocks n", "blocks", formats.count),
        ("parameters", "parameters", formats.count),
        ("of LoRA", "share_of_lora", formats.share),
        ("adapter file", "adapter_bytes", formats.size),
        ("peak memory", "peak_memory_bytes", formats.size),
        ("planned memory", "planned_memory_bytes", formats.size),
        ("step", "step_seconds", formats.duration),
        ("longest run", "longest_seconds", formats.duration),
        ("all runs", "wall_seconds", formats.duration),
        ("energy", "energy_joules", formats.energy),
    ],
)
MEMORY_NOTE = (
    "Planned memory is that of a step's tensors. On a GPU, peak memory is that of all tensors and "
    "workspaces; on a CPU, it is that of the whole process. Energy is that of the GPU, as its "
    "driver reports it; a dash means that it is unknown for a run."
)
EFFICIENCY = Description(
    name="efficiency",
    caption="Cost of LoRA (one block) and Block-LoRA over ranks and blocks, for the dataset with "
    "the most classes. Parameters, bytes and FLOPs of a training step are derived from "
    "the model's shapes, FLOPs also counted by PyTorch; memory is planned: that of the "
    "tensors of a step at their peak. Nothing here is measured on a device.",
    columns=[
        ("method", "method", method_label),
        ("rank r", "rank", str),
        ("blocks n", "blocks", str),
        ("partition", "blocks partition", formats.partition),
        ("parameters", "parameters", formats.count),
        ("adapter file", "adapter_bytes", formats.size),
        ("optimizer state", "optimizer_bytes", formats.size),
        ("GFLOPs by formula", "flops_per_step_formula", formats.giga),
        ("GFLOPs counted", "flops_per_step_counted", formats.giga),
        ("planned memory", "planned_memory_bytes", formats.size),
    ],
    notes=["Every dataset is in the CSV form of this table."],
)


def cost_per_method(results: Results) -> pd.DataFrame:
    """Return the cost of each backbone and adapter method, summarised over its runs.

    The columns are the keys and the summarised fields of `COST`, and share_of_lora, a fraction. It
    is NaN without runs of a LoRA that differs in blocks and partition only. The energy of a method
    is NaN if that of one of its runs is unknown.
    """
    frame = COST.summary(results.runs[results.runs["shots"] > 0])
    lora = dict(block_pairs(results.study))
    parameters = frame.set_index(["backbone", "method"])["parameters"]
    base = [parameters.get((row.backbone, lora.get(row.method)), nan) for row in frame.itertuples()]
    frame.insert(6, "share_of_lora", frame["parameters"] / base)
    return frame


def planned_memory(methods: pd.DataFrame, efficiency: pd.DataFrame) -> pd.Series:
    """Return the planned memory of methods, in bytes, for the dataset with the most classes.

    Args:
        methods: Rows with the columns backbone, rank, blocks and partition.
        efficiency: The rows of `efficiency.csv`. Methods with other ranks, blocks or
            partitions get NaN.
    """
    rows = largest_task(efficiency)
    planned = dict(zip(_settings(rows), rows["planned_memory_bytes"], strict=True))
    found = [planned.get(settings, nan) for settings in _settings(methods)]
    return pd.Series(found, index=methods.index, dtype=float)


def _settings(frame: pd.DataFrame) -> list[tuple[str, int, int, str]]:
    """Return the settings that identify the planned memory; with one block, partition is empty."""
    partitions = frame["partition"].where(frame["blocks"] > 1, "")
    return list(zip(frame["backbone"], frame["rank"], frame["blocks"], partitions, strict=True))


def largest_task(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of each backbone for its dataset with the most classes, which costs most."""
    first = frame.sort_values("classes", ascending=False, kind="stable")
    chosen = first.groupby("backbone", sort=False)["dataset"].first()
    return frame[frame["dataset"] == frame["backbone"].map(chosen)]


def cost_table(results: Results) -> Table:
    """Return the table of parameters, memory, time and energy per method, measured on the runs."""
    frame = cost_per_method(results)
    planned = planned_memory(frame, results.theory("efficiency"))
    frame.insert(frame.columns.get_loc("step_seconds"), "planned_memory_bytes", planned)
    devices = sorted(set(results.runs["device_name"].dropna().astype(str)))
    notes = [
        f"Runs on: {', '.join(devices)}." if devices else None,
        MEMORY_NOTE,
        results.missing_note([run for run in results.missing if run.shots]),
    ]
    return COST.table(results.study, frame, notes=notes)


def efficiency_table(results: Results) -> Table:
    """Return the table of the derived cost of LoRA and Block-LoRA over ranks and blocks."""
    frame = results.theory("efficiency")
    return EFFICIENCY.table(
        results.study,
        frame,
        by=("backbone", "dataset", "classes"),
        title=lambda backbone, dataset, classes: (
            f"{backbone}, {dataset_label(dataset)} ({classes} classes)"
        ),
        shown=largest_task(frame),
    )
