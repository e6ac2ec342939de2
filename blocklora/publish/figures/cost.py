"""Figures of cost: measured for each method, and derived from shapes over ranks and blocks."""

from blocklora.publish import formats
from blocklora.publish.figures.canvas import Drawing, choose_backbone, panels
from blocklora.publish.figures.over_blocks import block_lines, blocks_axis
from blocklora.publish.published_accuracies import dataset_label, method_label
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
    """Draw the parameters, peak memory and step time of each method, measured on the runs."""
    study, frame = results.study, cost_per_method(results)
    frame = frame[frame["backbone"] == choose_backbone(study, backbone)].reset_index(drop=True)
    methods = [method_label(method) for method in frame["method"]]
    positions = range(len(methods))
    height = 0.75 + 0.3 * max(len(methods), 1)
    with panels(study, height, 1, len(RUN_PANELS)) as (figure, axes):
        for axis, (column, title, show) in zip(axes, RUN_PANELS, strict=True):
            values = frame[column].astype(float)
            labels = [formats.cell(show, value) for value in values]
            look = {"height": 0.55, "color": "#9ecae1", "edgecolor": "black", "linewidth": 0.6}
            axis.bar_label(axis.barh(positions, values, **look), labels, padding=3, fontsize=6.5)
            axis.margins(x=0.35)
            axis.set_yticks(positions, methods)
            axis.set(xlabel=title, xticks=[], ylim=(len(methods) - 0.4, -0.6))
            axis.spines["bottom"].set_visible(False)
            axis.grid(visible=False)
            axis.tick_params(left=False, labelleft=axis is axes[0])
    text = "Cost of adaptation per method: trainable parameters, largest peak memory of a run, "
    text += "median time of a training step. Measured."
    return Drawing("cost", figure, caption_of(study, text), frame)


def efficiency_figure(results: Results, backbone: str | None = None) -> Drawing:
    """Draw parameters, FLOPs and planned memory over blocks, with a line per rank and partition.

    The figure shows the dataset with the most classes.
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
            axis.axhline(0, color="black", linewidth=0.6)  # so that differences are not exaggerated
            axis.margins(y=0.08)
            axis.set_ylim(bottom=0)
    shown = frame[["dataset", "classes"]].drop_duplicates().itertuples(index=False)
    task = ", ".join(f"{dataset_label(name)} ({classes} classes)" for name, classes in shown)
    text = f"Cost over the number of blocks for {backbone} on {task}; one block is LoRA. "
    text += "Parameters, FLOPs and memory, which is planned, are derived from shapes."
    return Drawing("efficiency", figure, caption_of(study, text), frame)
