"""Figures of cost: per method from the runs, and over ranks and blocks from the formulas."""

from blocklora.publish import formats
from blocklora.publish.figures.blocks import block_lines, blocks_axis
from blocklora.publish.figures.canvas import Drawing, choose_backbone, panels
from blocklora.publish.published import dataset_label, method_label
from blocklora.publish.results import Results, caption_of
from blocklora.publish.tables.cost import cost_per_method, largest_task

RUN_PANELS = (
    ("parameters", "trainable parameters", formats.count),
    ("peak_memory_bytes", "largest peak memory", formats.size),
    ("step_seconds", "median time of a step", formats.duration),
)
EFFICIENCY_PANELS = (
    ("parameters", "trainable parameters (thousands)", 1e3),
    ("flops_per_step_formula", "GFLOPs per step", 1e9),
    ("planned_memory_bytes", "planned memory (GB)", 1e9),
)


def cost_figure(results: Results, backbone: str | None = None) -> Drawing:
    """Draw parameters, peak memory and step time per method, measured on the runs.

    Raises:
        UserError: the study has several backbones and none, or another one, is named.
    """
    backbone = choose_backbone(results.study, backbone)
    frame = cost_per_method(results)
    frame = frame[frame["backbone"] == backbone].reset_index(drop=True)
    methods = [method_label(method) for method in frame["method"]]
    positions = range(len(methods))
    height = 0.75 + 0.3 * max(len(methods), 1)
    with panels(results.study, height, 1, len(RUN_PANELS)) as (figure, axes):
        for axis, (column, title, show) in zip(axes, RUN_PANELS, strict=True):
            values = frame[column].astype(float)
            drawn = axis.barh(
                positions, values, height=0.55, color="#9ecae1", edgecolor="black", linewidth=0.6
            )
            axis.bar_label(drawn, values.map(show), padding=3, fontsize=6.5)
            axis.margins(x=0.35)
            axis.set_yticks(positions, methods)
            axis.set(xlabel=title, xticks=[], ylim=(len(methods) - 0.4, -0.6))
            axis.spines["bottom"].set_visible(False)
            axis.grid(visible=False)
            axis.tick_params(left=False, labelleft=axis is axes[0])
    caption = caption_of(
        results.study,
        "Cost of adaptation per method: trainable parameters, largest peak memory of a run, median "
        "time of a training step. Measured.",
    )
    return Drawing("cost", figure, caption, frame)


def efficiency_figure(results: Results, backbone: str | None = None) -> Drawing:
    """Draw parameters, FLOPs and planned memory over blocks, a line per rank and partition.

    Of the backbone's datasets the one with the most classes is shown.

    Raises:
        UserError: the file is missing or lacks a column, or no backbone could be chosen.
    """
    study = results.study
    backbone = choose_backbone(study, backbone)
    frame = largest_task(results.theory("efficiency"))
    frame = frame[frame["backbone"] == backbone]
    with panels(study, 2.5, 1, len(EFFICIENCY_PANELS)) as (figure, axes):
        for axis, (column, title, unit) in zip(axes, EFFICIENCY_PANELS, strict=True):
            for label, line, look in block_lines(frame):
                axis.plot(line["blocks"], line[column] / unit, label=label, **look)
            blocks_axis(axis, frame["blocks"])
            axis.set_ylabel(title)
            axis.axhline(0, color="black", linewidth=0.6)  # what changes is seen against the whole
            axis.margins(y=0.08)
            axis.set_ylim(bottom=0)
    task = ", ".join(
        f"{dataset_label(dataset)} ({classes} classes)"
        for dataset, classes in dict(zip(frame["dataset"], frame["classes"], strict=True)).items()
    )
    text = f"Cost over the number of blocks for {backbone} on {task}; one block is LoRA. "
    text += "Parameters, FLOPs and memory, which is planned, are derived from shapes."
    return Drawing("efficiency", figure, caption_of(study, text), frame)
