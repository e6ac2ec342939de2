"""The figure of average accuracy over the number of blocks."""

import pandas as pd
from matplotlib.axes import Axes

from blocklora.publish import formats
from blocklora.publish.figures.canvas import Drawing, choose_backbone, panels
from blocklora.publish.figures.over_blocks import block_lines, blocks_axis
from blocklora.publish.results import Results, caption_of
from blocklora.publish.tables.ablation import ablation_frame


def ablation_figure(results: Results, backbone: str | None = None) -> Drawing:
    """Draw average accuracy over blocks: a panel per shot count, a line per rank and partition.

    A LoRA that equals a Block-LoRA of the study with merged arms is drawn as an open circle, at the
    number of blocks of that Block-LoRA.
    """
    study, frame = results.study, ablation_frame(results)
    frame = frame[frame["backbone"] == choose_backbone(study, backbone)]
    with panels(study, 2.5, 1, len(study.shots)) as (figure, axes):
        for axis, count in zip(axes, study.shots, strict=True):
            _panel(axis, frame[frame["shots"] == count])
            blocks_axis(axis, frame["blocks"])
            axis.set_title(formats.shots(count))
        axes[0].set_ylabel("average test accuracy (%)")
    text = (
        "Test accuracy averaged over the datasets against the number of blocks, mean and standard "
        "deviation over seeds; measured. One block is LoRA."
    )
    if frame["merges"].any():
        text += (
            " Circles: LoRA of rank r/n and alpha α√n, which Block-LoRA by rank is with its arms "
            "merged."
        )
    return Drawing("ablation", figure, caption_of(study, text), frame)


def _panel(axis: Axes, frame: pd.DataFrame) -> None:
    grid = frame[frame["merges"] == ""]
    for label, line, look in block_lines(grid):
        bars = {"yerr": line["std"], "capsize": 2, "elinewidth": 0.6}
        axis.errorbar(line["blocks"], line["mean"], label=label, **bars, **look)
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
