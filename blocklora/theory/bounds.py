"""The information-theoretic bound of the generalization gap, for every way to adapt.

For a loss that is σ-sub-Gaussian and N independent samples, the gap between expected and training
loss is at most sqrt(2 σ² I(S; W) / N) (Xu & Raginsky 2017, arXiv 1705.07809, Theorem 1). P trained
parameters stored in q bits each carry at most P q ln 2 nats about the sample, so

    |gap| <= sqrt(2 q σ² ln 2 · P / N),

which is Lemma 4.5 of Zhu et al. 2024 (arXiv 2402.16842) with P = r Σ (d_in + d_out) for LoRA,
r Σ d_out for training B alone and r Σ d_in for training A alone. A method enters through P only.
The 0-1 loss is 1/2-sub-Gaussian (Hoeffding's lemma).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import log, sqrt
from typing import Any

from blocklora.adapters.config import PARTITIONS, AdapterConfig
from blocklora.theory.context import Context
from blocklora.theory.parameters import (
    Shapes,
    counted_parameters,
    effective_parameters,
    factor_parameters,
)
from blocklora.theory.sources import class_counts, model_shapes

SIGMA_ZERO_ONE = 0.5
STORED_BITS = 32


@dataclass(frozen=True)
class Count:
    """The parameters of one way to adapt a model, and of LoRA at the same rank and matrices."""

    method: str
    parameters: int
    effective: int
    lora: int


def rows(context: Context) -> Iterator[dict[str, Any]]:
    """Yield the rows of bounds.csv.

    Raises:
        UserError: the shape of a backbone or the number of classes of a dataset is not known.
    """
    study = context.study
    classes = class_counts(context)
    methods = {name: study.methods[name].adapter for name in study.adapter_methods}
    for backbone, clip in model_shapes(context).items():
        yield from bound_rows(backbone, counts(methods, clip.tower_shapes), classes, study.shots)


def information_bound(
    parameters: int, samples: int, bits: int = STORED_BITS, sigma: float = SIGMA_ZERO_ONE
) -> float:
    """Return sqrt(2 q σ² ln 2 · P / N), a bound in units of the loss.

    Args:
        parameters: P, trained parameters.
        samples: N, training samples.
        bits: q, stored bits of a parameter.
        sigma: σ, sub-Gaussian parameter of the loss.
    """
    return sqrt(2 * bits * sigma**2 * log(2) * parameters / samples)


def counts(methods: Mapping[str, AdapterConfig], shapes: Shapes) -> list[Count]:
    """Return the counts of each method, and of the variants the theory compares it with.

    A method with several blocks is followed by its other partitions, `<method>_<partition>`, one
    with a single block (LoRA) by `<method>_b_only` and `<method>_a_only`; a variant that is a
    method of its own, or of another one, is not repeated.

    Raises:
        UserError: an adapter does not fit the model.
    """
    found, known = [], list(methods.values())
    for name, config in methods.items():
        lora = sum(factor_parameters(replace(config, blocks=1), shapes))
        effective = effective_parameters(config, shapes)
        found.append(Count(name, counted_parameters(config, shapes), effective, lora))
        if config.blocks == 1:
            down, up = factor_parameters(config, shapes)
            found += [
                Count(f"{name}_b_only", up, up, lora),
                Count(f"{name}_a_only", down, down, lora),
            ]
            continue
        for other in _other_partitions(config, shapes):
            if other not in known:
                known.append(other)
                effective = effective_parameters(other, shapes)
                parameters = counted_parameters(other, shapes)
                found.append(Count(f"{name}_{other.partition}", parameters, effective, lora))
    return found


def bound_rows(
    backbone: str,
    counted: Iterable[Count],
    classes: Mapping[str, int],
    shots: Sequence[int],
) -> Iterator[dict[str, Any]]:
    """Yield the rows of a backbone: each dataset (name to classes), method and shot count."""
    for dataset, number in classes.items():
        for count in counted:
            for k in shots:
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


def _other_partitions(config: AdapterConfig, shapes: Shapes) -> list[AdapterConfig]:
    """Return the same adapter by the other partitions by which rank and widths can be cut."""
    widths = [shapes[tower][1] for tower in config.towers]
    return [
        replace(config, partition=name)
        for name, cut in PARTITIONS.items()
        if name != config.partition
        and not (cut.rank and config.rank % config.blocks)
        and not (cut.inputs and any(width % config.blocks for width in widths))
    ]
