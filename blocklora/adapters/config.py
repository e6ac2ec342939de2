"""The configuration of an adapter: rank, blocks, partition, and the matrices it updates."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import sqrt
from typing import Annotated, Any

from blocklora.errors import UserError
from blocklora.fields import Allowed, Count, Positive, ShareBelowOne, one_of, some_of, to_values


@dataclass(frozen=True)
class Cut:
    """The dimensions that a partition cuts into n blocks.

    Attributes:
        rank: True if A and B have the rank r/n, and n arms B share A.
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
RANGE = {"type": "array", "minItems": 2, "maxItems": 2, "items": {"type": "integer", "minimum": 0}}
Layers = Annotated[
    str | tuple[int, int],
    Allowed(
        "all, or the first and the last layer, such as [0, 5]", {"anyOf": [{"const": "all"}, RANGE]}
    ),
]


@dataclass(frozen=True)
class AdapterConfig:
    """A low-rank adapter y = W x + b + s·ΔW·dropout(x) with s = alpha / sqrt(rank).

    ΔW is (B_1 + … + B_arms)·A for the rank partition and B·(A A … A) for the input partition. With
    `blocks` = 1, both are LoRA, whose ΔW is B A.

    Attributes:
        rank: r; the rank partition needs a multiple of `blocks`.
        blocks: n, the number of blocks.
        partition: how the adapter is cut into blocks, one of `PARTITIONS`.
        alpha: numerator of the scale (1 in CLIP-LoRA).
        dropout: probability of zeroing an input of the low-rank path in training.
        matrices: any of q, k, v, o of an attention layer.
        layers: "all", or the first and last adapted layer (from 0, inclusive) of each tower.
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
        """Check every field, because some configurations do not come from a study file.

        Raises:
            UserError: a value is not allowed.
        """
        if self.rank < 1 or self.blocks < 1:
            raise UserError(f"rank {self.rank} and blocks {self.blocks} must be at least 1")
        if self.partition not in PARTITIONS:
            raise UserError(f"partition {self.partition!r} is not one of {', '.join(PARTITIONS)}")
        if self.rank % self.arms:
            raise UserError(
                f"rank {self.rank} is not a multiple of blocks {self.blocks}, "
                f"which the {self.partition} partition needs"
            )
        if not 0 <= self.dropout < 1:
            raise UserError(f"dropout {self.dropout} is not in [0, 1)")
        for name, allowed in (("matrices", MATRICES), ("towers", TOWERS)):
            values = getattr(self, name)
            if not values or len(set(values)) != len(values) or not set(values) <= set(allowed):
                raise UserError(
                    f"{name} {list(values)} must be one or more different ones of "
                    + ", ".join(allowed)
                )
        if self.layers != "all":
            first, last = self.layers
            if not 0 <= first <= last:
                raise UserError(
                    f"layers {list(self.layers)} is neither 'all' nor [first, last] with "
                    "0 <= first <= last"
                )

    @property
    def scale(self) -> float:
        """The factor s = alpha / sqrt(rank) of the update, as in CLIP-LoRA (not alpha / rank)."""
        return self.alpha / sqrt(self.rank)

    @property
    def arms(self) -> int:
        """Number of arms, which are the up-projections B of one matrix."""
        return self.blocks if PARTITIONS[self.partition].rank else 1

    @property
    def tiles(self) -> int:
        """How many times the down-projection A of a matrix is repeated over the input."""
        return self.blocks if PARTITIONS[self.partition].inputs else 1

    @property
    def merged(self) -> "AdapterConfig":
        """The equivalent adapter with a single arm, as all arms stay equal in training.

        Block-LoRA(r, n, α) by rank is LoRA(r/n, α√n), because n equal arms of scale α/√r are one
        arm of scale α√n/√(r/n).
        """
        if self.arms == 1:
            return self
        rank, alpha = self.rank // self.arms, self.alpha * sqrt(self.arms)
        partition = self.partition if self.tiles == 1 else "input"
        return replace(self, rank=rank, blocks=self.tiles, alpha=alpha, partition=partition)

    def factor_shapes(self, d_in: int, d_out: int) -> tuple[tuple[int, int], tuple[int, int, int]]:
        """Return the shapes of A (inner, inputs) and of the stacked B (arms, d_out, inner).

        Raises:
            UserError: the input is cut, but `d_in` is not a multiple of the blocks.
        """
        if d_in % self.tiles:
            raise UserError(
                f"an input of width {d_in} cannot be cut into {self.blocks} equal slices; "
                "choose a number of blocks that divides it"
            )
        inner = self.rank // self.arms
        return (inner, d_in // self.tiles), (self.arms, d_out, inner)

    def adapted_layers(self, layers: int, tower: str) -> tuple[int, int]:
        """Return the first and last adapted layer (inclusive) of a tower with `layers` layers.

        Raises:
            UserError: the configured range exceeds the tower.
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
