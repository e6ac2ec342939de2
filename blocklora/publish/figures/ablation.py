"""Average accuracy over the number of blocks."""

import pandas as pd
from matplotlib.axes import Axes

from blocklora.publish import formats
from blocklora.publish.figures.blocks import block_lines, blocks_axis
from blocklora.publish.figures.canvas import Drawing, choose_backbone, panels
from blocklora.publish.results import Results, caption_of
from blocklora.publish.tables.ablation import ablation_frame


def ablation_figure(results: Results, backbone: str | None = None) -> Drawing:
    """Draw average accuracy over blocks, a panel per shot count, a line per rank and partition.

    LoRA of the merged arms, where the study has it, is an open circle at its Block-LoRA.

    Raises:
        UserError: the study has several backbones and none, or another one, is named.
    """
    backbone = choose_backbone(results.study, backbone)
    frame = ablation_frame(results)
    frame = frame[frame["backbone"] == backbone]
    shots = results.study.shots
    with panels(results.study, 2.5, 1, len(shots)) as (figure, axes):
        for axis, count in zip(axes, shots, strict=True):
            _panel(axis, frame[frame["shots"] == count])
            blocks_axis(axis, frame["blocks"])
            axis.set_title(formats.shots(count))
        axes[0].set_ylabel("average test accuracy (%)")
    text = (
        "Test accuracy averaged over the datasets against the number of blocks, mean and standard "
        "deviation over seeds; measured. One block is LoRA."
    )
    if frame["merges"].any():
        text += " Circles: LoRA of rank r/n and alpha α√n, which Block-LoRA by rank is with its "
        text += "arms merged."
    return Drawing("ablation", figure, caption_of(results.study, text), frame)


def _panel(axis: Axes, frame: pd.DataFrame) -> None:
    grid = frame[frame["merges"] == ""]
    for label, line, look in block_lines(grid):
        axis.errorbar(
            line["blocks"],
            line["mean"],
            yerr=line["std"],
            label=label,
            capsize=2,
            elinewidth=0.6,
            **look,
        )
    merged = frame[frame["merges"] != ""]
    if len(merged):
        blocks = grid.set_index("method")["blocks"].loc[merged["merges"]]
        axis.plot(
            blocks,
            merged["mean"],
            linestyle="none",
            marker="o",
            markersize=7,
            markerfacecolor="none",
            markeredgecolor="#555555",
            label="LoRA of the merged arms",
        )
