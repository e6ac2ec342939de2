"""The lines and the horizontal axis of figures that show values over the number of blocks."""

import pandas as pd
from matplotlib.axes import Axes

from blocklora.publish.figures.canvas import DASHES, looks


def block_lines(frame: pd.DataFrame) -> list[tuple[str, pd.DataFrame, dict[str, object]]]:
    """Return the label, rows and look of each line; there is one for each rank and partition.

    LoRA has one block and no partition, so every line of its rank begins with it. Ranks differ in
    colour and marker, partitions in dashes. The first partition, which is "rank" if any Block-LoRA
    has it, has a line for every rank. Another one has a line only for ranks with Block-LoRA of it.

    Args:
        frame: Rows with the columns rank, blocks and partition.

    Returns:
        For each line, its label, its rows in order of blocks, and arguments of `Axes.plot`.
    """
    is_lora = frame["blocks"] == 1
    partitions = sorted(set(frame.loc[~is_lora, "partition"]), reverse=True) or ["rank"]
    lines = []
    for position, (rank, rows) in enumerate(frame.groupby("rank", sort=True)):
        for dashes, partition in zip(DASHES, partitions, strict=False):
            chosen = rows[(rows["blocks"] == 1) | (rows["partition"] == partition)]
            if partition != partitions[0] and (chosen["blocks"] == 1).all():
                continue
            label = f"rank {rank}" + (f", by {partition}" if len(partitions) > 1 else "")
            look = looks(position) | {"linestyle": dashes}
            lines.append((label, chosen.sort_values("blocks"), look))
    return lines


def blocks_axis(axis: Axes, blocks: pd.Series) -> None:
    """Label the horizontal axis with the numbers of blocks, on a logarithmic scale of base 2."""
    values = sorted(set(blocks))
    axis.set_xscale("log", base=2)
    axis.set_xticks(values, [str(value) for value in values])
    axis.set_xlabel("blocks n")
    axis.margins(x=0.12)
