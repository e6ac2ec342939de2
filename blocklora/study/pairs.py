"""Pairs of a Block-LoRA and a LoRA method, which the theory and the tables compare."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from math import isclose

from blocklora.adapters.config import AdapterConfig
from blocklora.study.study import Study

Pairs = list[tuple[str, str]]
"""The names of a Block-LoRA method and of the LoRA method to compare it with, for each pair."""


def block_pairs(study: Study) -> Pairs:
    """Return the pairs whose adapters differ only in the number of blocks and the partition."""
    return [
        names
        for names, config, other in _candidates(study)
        if replace(config, blocks=1, partition=other.partition) == other
    ]


def merged_pairs(study: Study) -> Pairs:
    """Return the pairs in which merging the arms of the Block-LoRA gives the LoRA.

    Values of alpha are compared with a tolerance, because they are rounded in study files.
    """
    return [
        names
        for names, config, other in _candidates(study)
        if config.arms > 1
        and isclose(config.merged.alpha, other.alpha, rel_tol=1e-6)
        and replace(config.merged, alpha=other.alpha, partition=other.partition) == other
    ]


def _candidates(study: Study) -> Iterator[tuple[tuple[str, str], AdapterConfig, AdapterConfig]]:
    """Yield the names and the adapters of each pair of a Block-LoRA and a LoRA method."""
    adapters = {name: study.methods[name].adapter for name in study.adapter_methods}
    for names in product(adapters, repeat=2):
        config, other = (adapters[name] for name in names)
        if config.blocks > 1 and other.blocks == 1:
            yield names, config, other
