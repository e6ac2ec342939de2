"""The information-theoretic bound on the generalization gap, for all methods and variants of them.

If a loss is σ-sub-Gaussian and the N samples are independent, the expected gap between risk and
training loss is at most sqrt(2 σ² I(S; W) / N) (Xu & Raginsky 2017, arXiv 1705.07809, Theorem 1). P
trained parameters stored in q bits each carry at most P q ln 2 nats about the sample, so

    |gap| <= sqrt(2 q σ² ln 2 · P / N).

This is Lemma 4.5 of Zhu et al. 2024 (arXiv 2402.16842), with P = r Σ (d_in + d_out) for LoRA,
r Σ d_out for training only B, and r Σ d_in for training only A. Methods differ in P alone. The 0-1
loss is 1/2-sub-Gaussian (Hoeffding's lemma).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import log, prod, sqrt
from typing import Any

from blocklora.adapters.config import PARTITIONS, AdapterConfig
from blocklora.errors import UserError
from blocklora.theory.context import Context
from blocklora.theory.sources import class_counts, model_shapes

SIGMA_ZERO_ONE = 0.5  # σ of the 0-1 loss
STORED_BITS = 32  # q, the bits of a trained parameter

Shapes = Mapping[str, tuple[int, int]]
"""The number of layers and the width of each tower."""


@dataclass(frozen=True)
class Count:
    """The number of parameters of a method or a variant.

    Attributes:
        method: The name of the method or the variant.
        parameters: The number of trained parameters.
        effective: The number that remains when equal arms are merged into one.
        lora: The number of trained parameters of LoRA with the same rank and matrices.
    """

    method: str
    parameters: int
    effective: int
    lora: int


def rows(context: Context) -> Iterator[dict[str, Any]]:
    """Yield the rows of bounds.csv.

    Raises:
        UserError: The shape of a backbone is unknown, or the manifest of a local dataset is missing
            or damaged.
    """
    study = context.study
    classes = class_counts(context)
    methods = {name: study.methods[name].adapter for name in study.adapter_methods}
    for backbone, clip in model_shapes(context).items():
        yield from bound_rows(backbone, counts(methods, clip.tower_shapes), classes, study.shots)


def information_bound(parameters: int, samples: int) -> float:
    """Return the bound sqrt(2 q σ² ln 2 · P / N) for P parameters and N samples."""
    return sqrt(2 * STORED_BITS * SIGMA_ZERO_ONE**2 * log(2) * parameters / samples)


def factor_parameters(config: AdapterConfig, shapes: Shapes) -> tuple[int, int]:
    """Return the number of parameters of all down-projections and of all up-projections.

    An adapted matrix has r·d_in/n and r·d_out of them in either partition. For n = 1, these sum to
    the r (d_in + d_out) of LoRA.

    Raises:
        UserError: The adapter does not fit the model.
    """
    down = up = 0
    for tower in config.towers:
        layers, width = shapes[tower]
        first, last = config.adapted_layers(layers, tower)
        matrices = (last - first + 1) * len(config.matrices)
        down_shape, up_shape = config.factor_shapes(width, width)
        down += matrices * prod(down_shape)
        up += matrices * prod(up_shape)
    return down, up


def counts(methods: Mapping[str, AdapterConfig], shapes: Shapes) -> list[Count]:
    """Return the counts of all methods and of the variants to compare them with.

    A method with several blocks is followed by its other partitions, `<method>_<partition>`, and a
    method with a single block (LoRA) by `<method>_b_only` and `<method>_a_only`. A partition is
    left out if it does not fit, or if it is a method or another variant already. The effective
    parameters of the rank partition are those of a LoRA of rank r/n, which are r/n (d_in + d_out)
    per matrix.

    Raises:
        UserError: An adapter does not fit the model.
    """
    found, known = [], list(methods.values())
    for name, config in methods.items():
        lora = sum(factor_parameters(replace(config, blocks=1), shapes))
        found.append(_count(name, config, shapes, lora))
        if config.blocks == 1:
            down, up = factor_parameters(config, shapes)
            found += [
                Count(f"{name}_b_only", up, up, lora),
                Count(f"{name}_a_only", down, down, lora),
            ]
            continue
        for partition in PARTITIONS:
            try:
                other = replace(config, partition=partition)
                count = _count(f"{name}_{partition}", other, shapes, lora)
            except (UserError, ValueError):  # the rank or a width is not a multiple of the blocks
                continue
            if other not in known:
                known.append(other)
                found.append(count)
    return found


def _count(name: str, config: AdapterConfig, shapes: Shapes, lora: int) -> Count:
    parameters, effective = (sum(factor_parameters(c, shapes)) for c in (config, config.merged))
    return Count(name, parameters, effective, lora)


def bound_rows(
    backbone: str, counted: Iterable[Count], classes: Mapping[str, int], shots: Sequence[int]
) -> Iterator[dict[str, Any]]:
    """Yield the rows of bounds.csv for a backbone: one per dataset, count and number of shots.

    `classes` has the number of classes of each dataset.
    """
    for (dataset, number), count, k in product(classes.items(), counted, shots):
        samples = k * number
        yield {
            "backbone": backbone,
            "dataset": dataset,
            "method": count.method,
            "shots": k,
            "classes": number,
            "samples": samples,
            "parameters": count.parameters,
            "effective_parameters": count.effective,
            "bits": STORED_BITS,
            "sigma": SIGMA_ZERO_ONE,
            "bound": information_bound(count.parameters, samples),
            "effective_bound": information_bound(count.effective, samples),
            "ratio_to_lora": sqrt(count.parameters / count.lora),
            "effective_ratio_to_lora": sqrt(count.effective / count.lora),
        }
