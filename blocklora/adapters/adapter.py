"""The trainable parameters of an adapted CLIP model."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor

from blocklora.adapters.algebra import delta
from blocklora.adapters.config import AdapterConfig


@dataclass(frozen=True)
class Factors:
    """The factors A and B of a tower, stacked over its adapted layers and matrices.

    `blocklora.adapters.algebra` explains the shapes.

    Attributes:
        first: Index of the first adapted layer.
        down: A, shape (layers, matrices, inner, inputs).
        up: B, shape (layers, matrices, arms, width, inner).
    """

    first: int
    down: Tensor
    up: Tensor


@dataclass(frozen=True, eq=False)
class Adapter:
    """LoRA or Block-LoRA for the attention layers of a CLIP model.

    Attributes:
        config: The configuration of the adapter.
        towers: The factors of each adapted tower, "vision" or "text".
    """

    config: AdapterConfig
    towers: dict[str, Factors]

    @classmethod
    def initialise(
        cls,
        config: AdapterConfig,
        shapes: Mapping[str, tuple[int, int]],
        generator: torch.Generator,
        device: str | torch.device = "cpu",
    ) -> "Adapter":
        """Make an adapter that does not change the model yet, because B is zero.

        A is Kaiming uniform with a = sqrt(5), so its entries are uniform within ±1/sqrt(inputs)
        (MaxZanella/CLIP-LoRA@358f0d7:loralib/layers.py).

        Args:
            config: The configuration of the adapter.
            shapes: The number of layers and the width of each tower.
            generator: A generator on the CPU for A, so that its values do not depend on the device.
            device: The device to put the parameters on.

        Raises:
            UserError: The layer range or the number of blocks does not fit a tower.
        """
        towers = {}
        for tower in config.towers:
            layers, width = shapes[tower]
            first, last = config.adapted_layers(layers, tower)
            (inner, inputs), (arms, _, _) = config.factor_shapes(width, width)
            stack = (last - first + 1, len(config.matrices))
            bound = 1 / sqrt(inputs)
            down = torch.empty(*stack, inner, inputs).uniform_(-bound, bound, generator=generator)
            up = torch.zeros(*stack, arms, width, inner)
            towers[tower] = Factors(
                first, down.to(device).requires_grad_(), up.to(device).requires_grad_()
            )
        return cls(config, towers)

    def parameters(self) -> list[Tensor]:
        """Return the trainable tensors, in a fixed order."""
        return [tensor for tower in self.towers.values() for tensor in (tower.down, tower.up)]

    @property
    def trainable_parameters(self) -> int:
        """The number of trainable parameters."""
        return sum(tensor.numel() for tensor in self.parameters())

    @property
    def adapted_matrices(self) -> int:
        """The number of weight matrices that have an update."""
        return sum(tower.down.shape[0] * tower.down.shape[1] for tower in self.towers.values())

    def matrices(self) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Yield (name, A, B) of every adapted matrix, with names such as `vision.3.q`.

        A has the shape (inner, inputs), and B the shape (arms, width, inner).
        """
        for tower, factors in self.towers.items():
            for layer in range(factors.down.shape[0]):
                for index, matrix in enumerate(self.config.matrices):
                    name = f"{tower}.{factors.first + layer}.{matrix}"
                    yield name, factors.down[layer, index], factors.up[layer, index]

    def updates(self) -> Iterator[tuple[str, Tensor]]:
        """Yield (name, s·ΔW) of every adapted matrix; s·ΔW is dense, float64 (width, width)."""
        for name, down, up in self.matrices():
            dense = delta(down.detach().double(), up.detach().double(), self.config)
            yield name, self.config.scale * dense
