"""The configuration of an adapter: rank, blocks, partition, and the matrices it updates."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import sqrt
from typing import Annotated, Any, Literal

from blocklora.errors import UserError
from blocklora.fields import (
    Allowed,
    Checked,
    Count,
    Natural,
    Positive,
    ShareBelowOne,
    one_of,
    some_of,
    to_values,
)


@dataclass(frozen=True)
class Cut:
    """The dimensions that a partition cuts into n blocks.

    Attributes:
        rank: True if A and B have the rank r/n, and n arms B share one A.
        inputs: True if A has the width d_in/n and is repeated n times.
    """

    rank: bool = False
    inputs: bool = False


PARTITIONS: Mapping[str, Cut] = {
    "rank": Cut(rank=True),
    "input": Cut(inputs=True),
}
MATRICES = ("q", "k", "v", "o")
TOWERS = ("vision", "text")
Layers = Annotated[
    Literal["all"] | tuple[Natural, Natural],
    Allowed("all, or the first and the last layer, such as [0, 5]"),
]


@dataclass(frozen=True)
class AdapterConfig(Checked):
    """A low-rank adapter y = W x + b + s·ΔW·dropout(x) with s = alpha / sqrt(rank).

    ΔW is (B_1 + … + B_arms)·A for the rank partition and B·(A A … A) for the input partition. With
    `blocks` = 1, both are LoRA, whose ΔW is B A.

    Attributes:
        rank: The rank r. The rank partition needs a multiple of `blocks`.
        blocks: The number n of blocks.
        partition: The way in which the adapter is cut into blocks, one of `PARTITIONS`.
        alpha: The numerator of the scale s, which is 1 in CLIP-LoRA.
        dropout: The probability that training zeroes an input of the low-rank path.
        matrices: The adapted matrices of an attention layer, any of "q", "k", "v" and "o".
        layers: "all", or the first and last adapted layer of each tower, counted from 0.
        towers: The adapted towers, "vision", "text" or both.
    """

    rank: Count
    blocks: Count
    partition: one_of(*PARTITIONS)
    alpha: Positive
    dropout: ShareBelowOne
    matrices: some_of(*MATRICES)
    layers: Layers
    towers: some_of(*TOWERS)

    def faults(self) -> Iterator[str]:
        """Yield the values that do not fit together."""
        if self.rank % self.arms:
            yield (
                f"rank: {self.rank} is not allowed; it must be a multiple of blocks, "
                f"{self.blocks}, for the {self.partition} partition"
            )
        if self.layers != "all" and self.layers[0] > self.layers[1]:
            yield f"layers: {list(self.layers)} is not allowed; it must ascend"

    def misfits(self, tower_shapes: Mapping[str, tuple[int, int]]) -> Iterator[str]:
        """Yield the reasons why a backbone cannot have this adapter.

        Args:
            tower_shapes: The number of layers and the width of each tower of the backbone.
        """
        for tower in self.towers:
            layers, width = tower_shapes[tower]
            if self.rank > width:
                yield f"rank {self.rank} is larger than {width}, the width of the {tower} tower"
            try:
                self.adapted_layers(layers, tower)
                self.factor_shapes(width, width)
            except UserError as error:
                yield str(error)

    @property
    def scale(self) -> float:
        """The factor s = alpha / sqrt(rank) of the update, as in CLIP-LoRA (not alpha / rank)."""
        return self.alpha / sqrt(self.rank)

    @property
    def arms(self) -> int:
        """The number of arms, which are the up-projections B of one matrix."""
        return self.blocks if PARTITIONS[self.partition].rank else 1

    @property
    def tiles(self) -> int:
        """The number of times that the down-projection A of a matrix is repeated over the input."""
        return self.blocks if PARTITIONS[self.partition].inputs else 1

    @property
    def merged(self) -> "AdapterConfig":
        """The adapter with a single arm that is equivalent, because arms stay equal in training.

        With the rank partition, Block-LoRA(r, n, α) is LoRA(r/n, α√n), because n equal arms of
        scale α/√r are one arm of scale α√n/√(r/n).
        """
        if self.arms == 1:
            return self
        rank, alpha = self.rank // self.arms, self.alpha * sqrt(self.arms)
        partition = self.partition if self.tiles == 1 else "input"
        return replace(self, rank=rank, blocks=self.tiles, alpha=alpha, partition=partition)

    def factor_shapes(self, d_in: int, d_out: int) -> tuple[tuple[int, int], tuple[int, int, int]]:
        """Return the shapes of A (inner, inputs) and of the stacked B (arms, d_out, inner).

        Raises:
            UserError: The input is cut, but `d_in` is not a multiple of `blocks`.
        """
        if d_in % self.tiles:
            raise UserError(
                f"an input of width {d_in} cannot be cut into {self.blocks} equal slices; "
                "choose a number of blocks that divides it"
            )
        inner = self.rank // self.arms
        return (inner, d_in // self.tiles), (self.arms, d_out, inner)

    def adapted_layers(self, layers: int, tower: str) -> tuple[int, int]:
        """Return the first and last adapted layer, from 0, of a tower with `layers` layers.

        Raises:
            UserError: The configured range exceeds the tower.
        """
        if self.layers == "all":
            return 0, layers - 1
        first, last = self.layers
        if last >= layers:
            raise UserError(
                f"layers [{first}, {last}] goes beyond the {tower} tower, "
                f"whose layers are 0 to {layers - 1}"
            )
        return first, last

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON-serialisable values."""
        return to_values(self)
