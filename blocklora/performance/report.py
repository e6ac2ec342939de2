"""What the benchmark found, as JSON values and as a page of tables."""

from collections.abc import Sequence
from typing import Any

from blocklora.engine.plan import MIB
from blocklora.performance.bench import (
    IMAGENET_STEPS,
    IMAGENET_TEST,
    EngineFigures,
    Measurement,
    reference_seconds,
)
from blocklora.performance.forecast import chunks_text
from blocklora.performance.text import markdown

Facts = dict[str, Any]


def document(measurements: Sequence[Measurement], facts: Facts) -> Facts:
    """Return the content of the JSON file; `facts` are those of machine and versions."""
    return {
        "schema": 1,
        **facts,
        "settings": [_entry(found, measurements) for found in measurements],
    }


def _entry(found: Measurement, measurements: Sequence[Measurement]) -> Facts:
    setting = found.setting
    reference = reference_seconds(found, measurements)
    return {
        "model": setting.clip.name,
        "classes": found.classes,
        "prompt_tokens": sum(map(len, set(setting.prompts))),
        "batch_size": setting.batch_size,
        "towers": list(setting.adapter.towers),
        "precision": setting.precision,
        "chunks": vars(found.plan.chunks),
        "planned_memory_bytes": found.plan.peak_bytes,
        "product_rate_flops": found.product_rate,
        "flops_formula": found.formula_flops,
        "fast": _figures(found, found.fast),
        "fast_share_of_product_rate": found.floor_seconds / found.fast.step_seconds,
        "reference": found.reference and _figures(found, found.reference),
        "reference_ran_out_of_memory": found.reference_ran_out,
        "reference_step_seconds": reference,
        "reference_is_extrapolated": reference is not None and found.reference is None,
        "speedup": reference and reference / found.fast.step_seconds,
        "memory_share": found.reference
        and found.fast.peak_memory_bytes / found.reference.peak_memory_bytes,
        "parts_seconds": dict(found.parts),
        "floor_seconds": found.floor_seconds,
        "test_prompts_seconds": found.test_seconds[0],
        "test_image_seconds": found.test_seconds[1],
        "imagenet_minutes": found.imagenet_minutes,
    }


def _figures(found: Measurement, figures: EngineFigures) -> Facts:
    return {
        "step_seconds": figures.step_seconds,
        "rounds_seconds": list(figures.rounds),
        "images_per_second": found.setting.batch_size / figures.step_seconds,
        "peak_memory_bytes": figures.peak_memory_bytes,
        "flops_counted": figures.counted_flops,
        "first_loss": figures.first_loss,
    }


def page(measurements: Sequence[Measurement], facts: Facts) -> str:
    """Return the tables and what they were measured on, as Markdown."""
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    memory = "allocated on the GPU" if facts["device"] == "cuda" else "of the engine's process"
    parts = [
        f"{facts['device_name']}, {facts['threads']} threads; {versions}; medians of "
        f"{facts['rounds']} rounds.",
        _engines(measurements),
        f"Memory is the peak {memory}. Operations are those of the fast engine, by formula and as "
        "counted by PyTorch; the rate is that of a large matrix product. ~ is extrapolated "
        "linearly from the two largest numbers of classes that were measured.",
    ]
    if any(found.parts for found in measurements):
        parts += [
            "Seconds of a step by part; the floor is operations divided by the rate. The adapter "
            "is its low-rank paths with dropout. Augmentation is done by threads of the host "
            "beside the steps on a GPU, and before each step on a CPU.",
            _part_table(measurements),
        ]
    parts += [
        f"{found.setting.precision}: {IMAGENET_STEPS} steps on ImageNet and the test of "
        f"{IMAGENET_TEST} images take {found.imagenet_minutes:.1f} minutes, projected from the "
        "measured steps and tests."
        for found in measurements
        if found.imagenet_minutes is not None and len(found.setting.adapter.towers) == 2
    ]
    return "\n\n".join(parts) + "\n"


def _engines(measurements: Sequence[Measurement]) -> str:
    heading = (
        *("setting", "reference s", "fast s", "times faster", "images/s"),
        *("reference MiB", "fast MiB", "memory share", "planned MiB", "chunks"),
        *("TFLOP formula", "TFLOP counted", "rate TFLOP/s", "share of rate"),
    )
    rows = [heading]
    for found in measurements:
        entry = _entry(found, measurements)
        reference, seconds = found.reference, entry["reference_step_seconds"]
        mark = "~" if entry["reference_is_extrapolated"] else ""
        there = "out of memory" if found.reference_ran_out else ""
        rows.append(
            (
                _name(found),
                f"{mark}{seconds:.3g}" if seconds else there,
                f"{found.fast.step_seconds:.3g}",
                f"{mark}{entry['speedup']:.1f}" if seconds else "",
                f"{entry['fast']['images_per_second']:.3g}",
                f"{reference.peak_memory_bytes / MIB:.0f}" if reference else there,
                f"{found.fast.peak_memory_bytes / MIB:.0f}",
                f"{entry['memory_share']:.2f}" if reference else "",
                f"{found.plan.peak_bytes / MIB:.0f}",
                chunks_text(found.plan.chunks),
                f"{found.formula_flops / 1e12:.3f}",
                f"{found.fast.counted_flops / 1e12:.3f}",
                f"{found.product_rate / 1e12:.3g}",
                f"{entry['fast_share_of_product_rate']:.0%}",
            )
        )
    return markdown(rows)


def _part_table(measurements: Sequence[Measurement]) -> str:
    parted = [found for found in measurements if found.parts]
    names = list(dict.fromkeys(name for found in parted for name in found.parts))
    rows = [("setting", *names, "step", "floor", "above the floor")]
    rows += [
        (
            _name(found),
            *(f"{found.parts[name]:.3g}" if name in found.parts else "" for name in names),
            f"{found.fast.step_seconds:.3g}",
            f"{found.floor_seconds:.3g}",
            f"{found.fast.step_seconds - found.floor_seconds:.3g}",
        )
        for found in parted
    ]
    return markdown(rows)


def _name(found: Measurement) -> str:
    setting = found.setting
    towers = " and ".join(setting.adapter.towers)
    return f"{found.classes} classes, batch {setting.batch_size}, {towers}, {setting.precision}"
