"""Lines and the axis of figures that have the number of blocks on the horizontal axis."""

import pandas as pd
from matplotlib.axes import Axes

from blocklora.publish.figures.canvas import DASHES, looks


def block_lines(frame: pd.DataFrame) -> list[tuple[str, pd.DataFrame, dict[str, object]]]:
    """Return the label, rows and look of the line of each rank and partition.

    LoRA has one block and no partition, so every line of its rank begins with it. Ranks differ in
    colour and marker, partitions in dashes. The rank partition always has a line, another one only
    if there is Block-LoRA of it.

    Args:
        frame: Rows with the columns rank, blocks and partition.
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
    """Label the horizontal axis with numbers of blocks, on a scale of powers of two."""
    values = sorted(set(blocks))
    axis.set_xscale("log", base=2)
    axis.set_xticks(values, [str(value) for value in values])
    axis.set_xlabel("blocks n")
    axis.margins(x=0.12)
