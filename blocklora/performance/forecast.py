"""A forecast of the memory and time of every kind of run of a study, before anything is run.

A kind of run is a backbone, a dataset and a method that learns an adapter. The planner predicts
memory and chunks, and a closed formula predicts the operations. The time is the number of
operations divided by a measured rate.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from blocklora.adapters.config import AdapterConfig
from blocklora.backbones.shape import ClipConfig
from blocklora.data.registry import load_registry
from blocklora.engine.fast import Chunks, chunk_sizes
from blocklora.engine.needs import Setting
from blocklora.engine.packing import pack
from blocklora.engine.plan import MIB, plan
from blocklora.theory.flops import step_flops

if TYPE_CHECKING:
    from blocklora.study.study import Study

Prompts = Sequence[Sequence[int]]


def forecast(
    study: "Study",
    shapes: Mapping[str, ClipConfig],
    prompts: Mapping[str, Mapping[str, Prompts]],
    precision: str,
    budget_bytes: int,
    rate: float | None,
) -> dict[str, Any]:
    """Return the needs of every kind of run with an adapter as a JSON-serialisable dictionary.

    The `test_flops` of a kind are the operations of one test, or None if the number of test images
    is unknown. The `total_flops` are those of all its runs, including the tests if that number is
    known.

    Args:
        study: The study.
        shapes: The shapes of its backbones.
        prompts: The token ids of the prompt of each class, by template and dataset.
        precision: The precision of matrix products.
        budget_bytes: The bytes that PyTorch's allocator may hold during a training.
        rate: Operations per second; None to predict no times.

    Raises:
        UserError: A kind of run does not fit into the memory.
    """

    def seconds(flops: int | None) -> float | None:
        return None if rate is None or flops is None else flops / rate

    registry, seeds = load_registry(), len(study.seeds)
    kinds = []
    wanted = [*product(shapes.items(), study.datasets, study.adapter_methods)]
    shown = tqdm(wanted, desc="planning", unit="kind of run", disable=None, leave=False)
    for (backbone, clip), dataset, method in shown:
        config, recipe = study.methods[method].adapter, study.methods[method].recipe
        tokens = tuple(map(tuple, prompts[recipe.prompt][dataset]))
        setting = Setting(clip, config, tokens, recipe.batch_size, precision)
        chosen = plan(setting, budget_bytes)
        flops_per_step = planned_flops(setting, chosen.chunks)
        steps_per_shot = seeds * recipe.iterations_per_shot
        training = {
            shots: steps_per_shot * shots * flops_of_shots(setting, chosen.chunks, shots)
            for shots in study.shots
        }
        runs = [
            {"shots": k, "seeds": seeds, "training_flops": n, "training_seconds": seconds(n)}
            for k, n in training.items()
        ]
        entry = registry.get(dataset)
        test_flops = entry and entry.images["test"] * forward_flops(clip, config)
        kinds.append(
            {
                "backbone": backbone,
                "dataset": dataset,
                "method": method,
                "classes": len(tokens),
                "prompt_tokens": sum(map(len, set(tokens))),
                "batch_size": recipe.batch_size,
                "chunks": vars(chosen.chunks),
                "planned_memory_bytes": chosen.peak_bytes,
                "flops_per_step": flops_per_step,
                "step_seconds": seconds(flops_per_step),
                "test_flops": test_flops,
                "test_seconds": seconds(test_flops),
                "total_flops": sum(training.values()) + len(training) * seeds * (test_flops or 0),
                "runs": runs,
            }
        )
    total = sum(kind["total_flops"] for kind in kinds)
    return {
        "schema": 1,
        "study": study.name,
        "precision": precision,
        "usable_bytes": budget_bytes,
        "rate_flops": rate,
        "kinds": kinds,
        "total_flops": total,
        "total_seconds": seconds(total),
    }


def planned_flops(setting: Setting, chunks: Chunks) -> int:
    """Return the operations of a training step, including those that chunks make it repeat."""
    groups = pack(setting.prompts)[0][0].groups
    again = [chunk.groups for chunk in pack(setting.prompts, chunks.tokens)[0][:-1]]
    sizes = chunk_sizes(setting.batch_size, chunks.images)
    recomputed = {
        "text": [group for part in again for group in part],
        "vision": [(sum(sizes[:-1]), setting.clip.vision_tokens)],
    }
    inputs = setting.clip, setting.adapter, setting.batch_size, len(setting.prompts)
    return step_flops(*inputs, groups, recomputed).total


def flops_of_shots(setting: Setting, chunks: Chunks, shots: int) -> int:
    """Return the operations of a step on a GPU, where an epoch's last batch is filled up."""
    images = min(setting.batch_size, shots * len(setting.prompts))
    return planned_flops(replace(setting, batch_size=images), chunks)


def forward_flops(clip: ClipConfig, config: AdapterConfig) -> int:
    """Return the operations of testing one image on merged weights, without the logits."""
    frozen = replace(config, towers=("text",))
    return step_flops(clip, frozen, 1, 0, ()).vision.forward


def table(plan: Mapping[str, Any]) -> str:
    """Return a Markdown table with a line for each kind of run in a forecast, and the total."""
    from tabulate import tabulate

    rate, kinds = plan["rate_flops"], plan["kinds"]

    def hours(flops: int) -> str:
        return "" if rate is None else f"{flops / rate / 3600:.2f}"

    rows = [
        {
            "kind of run": f"{kind['backbone']}/{kind['dataset']}/{kind['method']}",
            "classes": kind["classes"],
            "prompt tokens": kind["prompt_tokens"],
            "chunks": chunks_text(kind["chunks"]),
            "MiB": f"{kind['planned_memory_bytes'] / MIB:.0f}",
            "TFLOP/step": f"{kind['flops_per_step'] / 1e12:.3f}",
            "s/step": "" if rate is None else f"{kind['step_seconds']:.3f}",
            "h": hours(kind["total_flops"]),
        }
        for kind in kinds
    ]
    runs = sum(run["seeds"] for kind in kinds for run in kind["runs"])
    rows.append({"kind of run": f"all {runs} runs", "h": hours(plan["total_flops"])})
    aligned = ("left", "right", "right", "left", *["right"] * 4)[: len(rows[0])]
    return tabulate(rows, "keys", "pipe", disable_numparse=True, colalign=aligned)


def chunks_text(chunks: Mapping[str, int | None]) -> str:
    """Return the sizes of chunks in words, such as "3430 tokens"."""
    parts = [f"{size} {what}" for what, size in chunks.items() if size is not None]
    return ", ".join(parts) or "none"
