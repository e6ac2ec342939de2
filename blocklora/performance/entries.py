"""The results of a piece of the benchmark, as its entry in the JSON file."""

from collections.abc import Mapping
from math import isfinite
from statistics import median
from typing import Any

from blocklora.engine.needs import Setting
from blocklora.engine.plan import Plan
from blocklora.performance.forecast import planned_flops
from blocklora.performance.traffic import Traffic

Facts = dict[str, Any]


def describe(setting: Setting) -> Facts:
    """Return the setting as a JSON-serialisable dictionary."""
    return {
        "model": setting.clip.name,
        "classes": len(setting.prompts),
        "prompt_tokens": sum(map(len, set(setting.prompts))),
        "batch_size": setting.batch_size,
        "towers": list(setting.adapter.towers),
        "precision": setting.precision,
    }


def setting_name(entry: Facts) -> str:
    """Return the setting of an entry, such as "50 classes, batch 8, vision and text, fp32"."""
    towers = " and ".join(entry["towers"])
    return (
        f"{entry['classes']} classes, batch {entry['batch_size']}, {towers}, {entry['precision']}"
    )


def entry(
    setting: Setting,
    chosen: Plan,
    flops_counted: int,
    traffic: Traffic,
    found: Mapping[str, Facts | None],
) -> Facts:
    """Return the measurements in one setting as a JSON-serialisable dictionary.

    Args:
        setting: The setting of the training.
        chosen: The plan of the fast engine.
        flops_counted: The operations that PyTorch counts in a step of the fast engine.
        traffic: The operations of such a step and their bytes.
        found: What `take_turns` has found of each trial.
    """
    engines = {
        name: found.get(name) and _figures(setting, found[name])
        for name in ("fast", "unrecorded", "reference")
    }
    fast, reference = engines["fast"], engines["reference"]
    device, flops = found.get("device"), planned_flops(setting, chosen.chunks)
    rate = device and median(device["turns"])
    answers = found["fast"] or {}
    kernels, busy = answers.get("kernels") or (None, None)
    test_prompts, test_image = answers.get("test_seconds") or (None, None)
    peaks = [engine["peak_memory_bytes"] for engine in (fast, reference) if engine]
    parts = _parts(found)
    if busy is not None:  # between kernels, the GPU waits for the next one
        parts["launch gaps"] = fast["step_seconds"] - busy
    return {
        **describe(setting),
        "chunks": vars(chosen.chunks),
        "planned_memory_bytes": chosen.peak_bytes,
        "flops_formula": flops,
        "flops_counted": flops_counted,
        "operations": traffic.operations,
        "bytes": traffic.bytes,
        **engines,
        "recorded": answers.get("recorded"),
        "reference_flops_counted": (found.get("reference") or {}).get("counted_flops"),
        "ran_out_of_memory": [name for name, answers in found.items() if answers is None],
        "memory_share": peaks[0] / peaks[1] if len(peaks) == 2 else None,
        "product_rate_flops": rate,
        "floor_seconds": rate and flops / rate,
        "fast_share_of_product_rate": fast and rate and flops / rate / fast["step_seconds"],
        "kernels": kernels,
        "busy_seconds": busy,
        "parts_seconds": parts,
        "test_prompts_seconds": test_prompts,
        "test_image_seconds": test_image,
    }


def _figures(setting: Setting, answers: Facts) -> Facts:
    """Return the measurements of one engine as a JSON-serialisable dictionary."""
    step = median(answers["turns"])
    return {
        "step_seconds": step,
        "rounds_seconds": answers["turns"],
        "images_per_second": setting.batch_size / step,
        **answers["peak_memory"],
        # JSON has neither NaN nor infinity, and the speed does not depend on the loss.
        "first_loss": answers["start"] if isfinite(answers["start"]) else None,
    }


def _parts(found: Mapping[str, Facts | None]) -> dict[str, float]:
    """Return the seconds of the parts of a step.

    There are none if only one tower is adapted, or if memory has run out for one of the trials.
    """
    names = ("fast", "towers", "vision")
    if not all(found.get(name) for name in (*names, "device")):
        return {}
    updates = {name: found[name]["optimizer_seconds"] for name in names}
    fast, towers, vision = (median(found[name]["turns"]) - updates[name] for name in names)
    return {
        "vision tower": vision,
        "text tower": towers - vision,
        "adapter": fast - towers,
        "optimizer": updates["fast"],
        "augmentation": found["device"]["augmentation_seconds"],
    }
