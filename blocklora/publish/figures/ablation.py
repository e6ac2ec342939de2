"""Average accuracy over the number of blocks."""

from blocklora.publish.figures.accuracy import choose_backbone
from blocklora.publish.figures.blocks import block_lines, blocks_axis
from blocklora.publish.figures.canvas import (
    Drawing,
    legend_below,
    mark_miniature,
    new_figure,
    style,
)
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
    with style():
        figure, axes = new_figure(2.5, 1, len(shots))
        for axis, count in zip(axes, shots, strict=True):
            for label, line, look in block_lines(frame[frame["shots"] == count]):
                axis.errorbar(
                    line["blocks"],
                    line["mean"],
                    yerr=line["std"],
                    label=label,
                    capsize=2,
                    elinewidth=0.6,
                    **look,
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
