"""What an adapter is: rank, blocks, partition, and which matrices it sits on."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import sqrt
from typing import Annotated, Any, Literal

from blocklora.errors import UserError
from blocklora.fields import (
    Allowed,
    Count,
    Natural,
    Positive,
    ShareBelowOne,
    one_of,
    refuse,
    some_of,
    to_values,
)


@dataclass(frozen=True)
class Cut:
    """What a partition cuts into blocks.

    Attributes:
        rank: True if A and B have the rank r/n, with n arms B that share A.
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
class AdapterConfig:
    """A low-rank adapter y = W x + b + s·ΔW·dropout(x) with s = alpha / sqrt(rank).

    ΔW = (B_1 + … + B_arms)·A for the rank partition, ΔW = B·(A A … A) for the input partition;
    `blocks` = 1 is LoRA in any case, ΔW = B A.

    Attributes:
        rank: r, the rank of LoRA at the same cost; a multiple of `blocks` where it is cut.
        blocks: n, the number of blocks the adapter is cut into.
        partition: the name of the cut, one of `PARTITIONS`.
        alpha: numerator of the scale (CLIP-LoRA: 1).
        dropout: probability that an input of the low-rank path is zeroed in training.
        matrices: any of q, k, v, o of an attention layer.
        layers: "all", or the first and last adapted layer (from 0, both included) of each tower.
        towers: "vision", "text" or both.
    """

    rank: Count
    blocks: Count
    partition: one_of(*PARTITIONS)
    alpha: Positive
    dropout: ShareBelowOne
    matrices: some_of(*MATRICES)
    layers: Layers
    towers: some_of(*TOWERS)

    def __post_init__(self) -> None:
        """Check what the types of the fields cannot say.

        Raises:
            ValueError: values do not go together.
        """
        refuse(self._faults())

    def _faults(self) -> Iterator[str]:
        if self.rank % self.arms:
            yield (
                f"rank: {self.rank} is not allowed; it must be a multiple of blocks, "
                f"{self.blocks}, for the {self.partition} partition"
            )
        if self.layers != "all" and self.layers[0] > self.layers[1]:
            yield f"layers: {list(self.layers)} is not allowed; it must ascend"

    def misfits(self, tower_shapes: Mapping[str, tuple[int, int]]) -> Iterator[str]:
        """Yield why a backbone cannot have this adapter.

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
        """The factor s = alpha / sqrt(rank) of the update (CLIP-LoRA, not alpha / rank)."""
        return self.alpha / sqrt(self.rank)

    @property
    def arms(self) -> int:
        """The number of up-projections of one matrix."""
        return self.blocks if PARTITIONS[self.partition].rank else 1

    @property
    def tiles(self) -> int:
        """How often the down-projection of one matrix is repeated over the input."""
        return self.blocks if PARTITIONS[self.partition].inputs else 1

    @property
    def merged(self) -> "AdapterConfig":
        """What this adapter is once its arms, which stay equal in training, are one.

        Block-LoRA(r, n, α) by rank is LoRA(r/n, α√n): n arms of the scale α/√r are one of the
        scale α√n/√(r/n). Nothing merges where there is one arm.
        """
        if self.arms == 1:
            return self
        rank, alpha = self.rank // self.arms, self.alpha * sqrt(self.arms)
        partition = self.partition if self.tiles == 1 else "input"
        return replace(self, rank=rank, blocks=self.tiles, alpha=alpha, partition=partition)

    def factor_shapes(self, d_in: int, d_out: int) -> tuple[tuple[int, int], tuple[int, int, int]]:
        """Return the shapes of A (inner, inputs) and of the stacked B (arms, d_out, inner).

        Raises:
            UserError: the blocks do not divide `d_in` evenly, where it is cut.
        """
        if d_in % self.tiles:
            raise UserError(
                f"an input of width {d_in} cannot be cut into {self.blocks} equal slices; "
                "choose a number of blocks that divides it"
            )
        inner = self.rank // self.arms
        return (inner, d_in // self.tiles), (self.arms, d_out, inner)

    def adapted_layers(self, layers: int, tower: str) -> tuple[int, int]:
        """Return the first and last adapted layer (both included) of a tower of `layers`.

        Raises:
            UserError: the configured range goes beyond the tower.
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
