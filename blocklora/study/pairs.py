"""Which methods of a study the theory and the tables compare."""

from dataclasses import replace
from math import isclose

from blocklora.adapters.config import AdapterConfig
from blocklora.study.model import Study

Pairs = list[tuple[str, str]]
"""(Block-LoRA method, LoRA method)."""


def block_pairs(study: Study) -> Pairs:
    """Return the pairs that differ in blocks and partition only: LoRA of the same rank."""
    return [
        (block, lora)
        for block, config in _blocks(study)
        for lora, other in _loras(study)
        if replace(config, blocks=1, partition=other.partition) == other
    ]


def merged_pairs(study: Study) -> Pairs:
    """Return the pairs of which the LoRA is what the Block-LoRA is with its arms merged.

    The numbers of files are rounded, hence so are these.
    """
    return [
        (block, lora)
        for block, config in _blocks(study)
        for lora, other in _loras(study)
        if config.arms > 1
        and isclose(config.merged.alpha, other.alpha, rel_tol=1e-6)
        and replace(config.merged, alpha=other.alpha, partition=other.partition) == other
    ]


def _blocks(study: Study) -> list[tuple[str, AdapterConfig]]:
    return [(name, config) for name, config in _adapters(study) if config.blocks > 1]


def _loras(study: Study) -> list[tuple[str, AdapterConfig]]:
    return [(name, config) for name, config in _adapters(study) if config.blocks == 1]


def _adapters(study: Study) -> list[tuple[str, AdapterConfig]]:
    return [(name, study.methods[name].adapter) for name in study.adapter_methods]
