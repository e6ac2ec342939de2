"""How many parameters an adapter trains, by formula and as counted on an adapter of the model."""

from collections.abc import Mapping

from blocklora.adapters.config import AdapterConfig

Shapes = Mapping[str, tuple[int, int]]
"""Tower name to (layers, width)."""


def factor_parameters(config: AdapterConfig, shapes: Shapes) -> tuple[int, int]:
    """Return the parameters of all down-projections and those of all up-projections.

    Per adapted matrix r·d_in/n and r·d_out with one cut: together r (d_in/n + d_out), of which
    r (d_in + d_out) is LoRA's case n = 1.
    """
    down = up = 0
    for tower in config.towers:
        layers, width = shapes[tower]
        first, last = config.adapted_layers(layers, tower)
        matrices = (last - first + 1) * len(config.matrices)
        inner = config.rank // config.arms
        down += matrices * inner * width // config.tiles
        up += matrices * config.rank * width
    return down, up


def effective_parameters(config: AdapterConfig, shapes: Shapes) -> int:
    """Return the parameters that remain once arms that stay equal are one.

    The arms of the rank partition enter only as their sum, a LoRA of rank r/n: r/n (d_in + d_out)
    per matrix.
    """
    return sum(factor_parameters(config.merged, shapes))


def counted_parameters(config: AdapterConfig, shapes: Shapes) -> int:
    """Return the number of trainable scalars of an adapter built for these shapes.

    Raises:
        UserError: the adapter does not fit the model.
        RuntimeError: the count is not the one of the formula.
    """
    import torch

    from blocklora.adapters.adapter import Adapter

    counted = Adapter.initialise(config, shapes, torch.Generator()).trainable_parameters
    expected = sum(factor_parameters(config, shapes))
    if counted != expected:
        raise RuntimeError(f"{config} has {counted} parameters, but {expected} by the formula")
    return counted
