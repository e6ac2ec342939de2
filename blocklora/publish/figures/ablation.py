"""Average accuracy over the number of blocks."""

import pandas as pd

from blocklora.publish.figures.accuracy import choose_backbone
from blocklora.publish.figures.canvas import (
    Drawing,
    legend_below,
    looks,
    mark_miniature,
    new_figure,
    style,
)
from blocklora.publish.figures.cost import blocks_axis
from blocklora.publish.results import Results, caption_of
from blocklora.publish.tables.ablation import ablation_frame


def ablation_figure(results: Results, backbone: str | None = None) -> Drawing:
    """Draw average accuracy over blocks, a panel per shot count, a line per rank and partition.

    Raises:
        UserError: the study has several backbones and none, or another one, is named.
    """
    backbone = choose_backbone(results.study, backbone)
    frame = ablation_frame(results)
    frame = frame[frame["backbone"] == backbone]
    shots = results.study.shots
    lines = _lines(frame)
    with style():
        figure, axes = new_figure(2.5, 1, len(shots))
        for axis, count in zip(axes, shots, strict=True):
            for number, (label, line) in enumerate(lines.items()):
                line = line[line["shots"] == count]
                axis.errorbar(
                    line["blocks"],
                    line["mean"],
                    yerr=line["std"],
                    label=label,
                    capsize=2,
                    elinewidth=0.6,
                    **looks(number),
                )
            blocks_axis(axis, frame["blocks"])
            axis.set_title(f"{count} shot" + "s" * (count > 1))
        axes[0].set_ylabel("average test accuracy (%)")
        legend_below(figure, axes[0], 4)
        mark_miniature(figure, results.study)
    caption = caption_of(
        results.study,
        "Test accuracy averaged over the datasets against the number of blocks, mean and standard "
        "deviation over seeds; measured. One block is LoRA.",
    )
    return Drawing("ablation", figure, caption, frame)


def _lines(frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return the points of each rank and partition; LoRA's point begins the lines of its rank."""
    lora = frame["blocks"] == 1
    partitions = sorted(set(frame.loc[~lora, "partition"])) or ["rank"]
    return {
        f"rank {rank}, {partition} partition": rows[
            (rows["blocks"] == 1) | (rows["partition"] == partition)
        ].sort_values("blocks")
        for rank, rows in frame.groupby("rank", sort=True)
        for partition in partitions
    }
