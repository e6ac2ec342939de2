"""The cost of LoRA and Block-LoRA, computed without any dataset or weights.

Parameters and bytes are counted on real adapters. Operations are computed with a formula and also
counted by PyTorch in a step of the fast engine on fake tensors. The same step gives the peak of
its tensors, which is the planned memory in the table.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from blocklora.adapters.adapter import Adapter
from blocklora.adapters.config import PARTITIONS, AdapterConfig
from blocklora.adapters.store import save_adapter
from blocklora.backbones.shape import ClipConfig
from blocklora.engine.fast import Chunks
from blocklora.engine.needs import Setting, counted_bytes
from blocklora.engine.packing import pack
from blocklora.study.study import Study
from blocklora.theory.bounds import factor_parameters
from blocklora.theory.context import Context
from blocklora.theory.counting import flop_counter
from blocklora.theory.flops import step_flops
from blocklora.theory.sources import dataset_prompts, model_shapes

RANKS = (2, 4, 8, 16)
BLOCKS = (1, 2, 4, 8)
HELD_BYTES = 12  # per parameter: its fp32 value and two moments of the optimizer


def configurations(study: Study) -> list[AdapterConfig]:
    """Return LoRA and Block-LoRA for every rank in `RANKS` and every number of blocks in `BLOCKS`.

    Everything else (alpha, dropout, matrices, layers and towers) is taken from the study's first
    adapter, so there must be one. The rank partition is always included where the number of blocks
    divides the rank; the other partition is included only if a method of the study uses it.
    """
    adapters = [study.methods[name].adapter for name in study.adapter_methods]
    used = {adapter.partition for adapter in adapters if adapter.blocks > 1} | {"rank"}
    partitions = [name for name in PARTITIONS if name in used]
    return [
        replace(adapters[0], rank=rank, blocks=blocks, partition=partition)
        for rank in RANKS
        for blocks in BLOCKS
        for partition in (partitions if blocks > 1 else ["rank"])
        if rank % blocks == 0 or not PARTITIONS[partition].rank
    ]


def rows(context: Context) -> Iterator[dict[str, Any]]:
    """Yield the rows of efficiency.csv, with the recipe of the study's first adapter.

    There are none if the study has no adapter. The precision of the context affects the planned
    memory alone.

    Raises:
        UserError: The shape of a backbone or the prompts of a dataset are unknown.
    """
    study = context.study
    if not study.adapter_methods:
        return
    recipe = study.methods[study.adapter_methods[0]].recipe
    prompts = dataset_prompts(context, recipe.prompt)
    for backbone, clip in model_shapes(context).items():
        for dataset, tokens in prompts.items():
            for config in configurations(study):
                yield {
                    "backbone": backbone,
                    "dataset": dataset,
                    "classes": len(tokens),
                    "method": "lora" if config.blocks == 1 else "block_lora",
                    "rank": config.rank,
                    "blocks": config.blocks,
                    "partition": config.partition,
                    **footprint(clip, config),
                    **step_cost(clip, config, tokens, recipe.batch_size, context.precision),
                }


@cache
def footprint(clip: ClipConfig, config: AdapterConfig) -> dict[str, int]:
    """Return the number of parameters of an adapter, and the bytes of its file and its optimizer.

    The file is counted without the metadata of a run, such as class names.
    """
    adapter = Adapter.initialise(config, clip.tower_shapes, torch.Generator())
    optimizer = torch.optim.AdamW(adapter.parameters())
    for parameter in adapter.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    state = [value for entry in optimizer.state.values() for value in entry.values()]
    with TemporaryDirectory() as folder:
        path = Path(folder, "adapter.safetensors")
        save_adapter(path, adapter, clip.name, "0" * 64)
        file_bytes = path.stat().st_size
    return {
        "parameters": adapter.trainable_parameters,
        "adapter_bytes": file_bytes,
        "optimizer_bytes": sum(value.nbytes for value in state),
    }


def step_cost(
    clip: ClipConfig,
    config: AdapterConfig,
    prompts: Sequence[Sequence[int]],
    batch_size: int,
    precision: str,
) -> dict[str, Any]:
    """Return the operations of a step by formula and as counted, and its planned memory in bytes.

    Adapters whose merged factors have the same shapes run the same step, so it is counted only
    once. They differ in the parameters and moments of their arms, which are added to the memory.
    The gradients of further arms at the peak are left out, because they are thousandths of a
    percent of the memory of a ViT-B/16's step.
    """
    same = replace(config.merged, alpha=config.alpha)
    counted, peak = _counted_step(
        Setting(clip, same, tuple(map(tuple, prompts)), batch_size, precision)
    )
    (packed,), _ = pack(prompts)
    formula = step_flops(clip, config, batch_size, len(prompts), packed.groups)
    shapes = clip.tower_shapes
    further = sum(factor_parameters(config, shapes)) - sum(factor_parameters(same, shapes))
    return {
        "flops_per_step_formula": formula.total,
        "flops_per_step_counted": counted,
        "planned_memory_bytes": peak + HELD_BYTES * further,
    }


@cache
def _counted_step(setting: Setting) -> tuple[int, int]:
    """Return the operations of a step as counted by PyTorch, and the peak bytes of its tensors."""
    with flop_counter() as counter:
        peak = counted_bytes(setting, Chunks())
    return counter.get_total_flops(), peak
