"""The benchmark of the engines in all settings, with its results as the content of a JSON file."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from blocklora.backbones.published import published_config
from blocklora.engine.plan import USABLE_SHARE
from blocklora.performance.machine import Machine, facts
from blocklora.performance.measure import Facts, describe, measure, setting_name, settings

# The default settings take minutes on a small CPU; on a GPU they include those of the paper. The
# reference engine is run with up to `reference_classes` classes. On a CPU these are few, because
# more would take hours.
DEFAULTS = {
    "cpu": {
        "classes": [10, 50],
        "batch_sizes": [4],
        "towers": ["both"],
        "precisions": ["fp32"],
        "reference_classes": 100,
    },
    "cuda": {
        "classes": [100, 1000],
        "batch_sizes": [32],
        "towers": ["both", "vision", "text"],
        "precisions": ["bf16", "fp32"],
        "reference_classes": 1000,
    },
}

logger = logging.getLogger(__name__)


def bench(
    *,
    device: str = "cpu",
    model: str = "ViT-B-16-quickgelu",
    classes: Sequence[int] | None = None,
    batch_sizes: Sequence[int] | None = None,
    towers: Sequence[str] | None = None,
    precisions: Sequence[str] | None = None,
    memory: int | None = None,
    threads: int | None = None,
    rounds: int = 5,
) -> Facts:
    """Measure every combination of settings and return the content of the JSON file.

    The arguments are the options of `blocklora bench`; None stands for `DEFAULTS`, and `memory` is
    in bytes. This function does not need the packages of the command line.

    Raises:
        UserError: The device is not available, the model is unknown, its file cannot be read, or
            memory is too small for the fast engine.
    """
    usual, machine = DEFAULTS[device], Machine(device, threads)
    if model.endswith(".safetensors"):
        from blocklora.theory.sources import read_shape  # imports the packages for study files

        shape = read_shape(Path(model))
    else:
        shape = published_config(model)
    precisions = list(dict.fromkeys(map(str, precisions or usual["precisions"])))
    chosen = list(
        settings(
            shape,
            sorted(set(classes or usual["classes"])),
            list(dict.fromkeys(batch_sizes or usual["batch_sizes"])),
            list(dict.fromkeys(towers or usual["towers"])),
            precisions,
        )
    )
    for precision in precisions:
        machine.prepare(precision)
    budget = memory and int(USABLE_SHARE * memory)
    found = []
    for number, setting in enumerate(chosen, 1):
        name = setting_name(describe(setting))
        logger.info("setting %d of %d: %s", number, len(chosen), name)
        found.append(
            measure(
                setting, machine, rounds, budget, len(setting.prompts) <= usual["reference_classes"]
            )
        )
    return document(found, facts(machine, rounds))


def document(entries: Sequence[Facts], facts: Facts) -> Facts:
    """Return the content of the JSON file; `facts` describe the machine and the versions."""
    settings = []
    for entry in entries:
        reference = reference_seconds(entry, entries)
        compared = {
            "reference_step_seconds": reference,
            "reference_is_extrapolated": reference is not None and entry["reference"] is None,
            "speedup": reference and reference / entry["fast"]["step_seconds"],
        }
        settings.append({**entry, **compared})
    return {"schema": 1, **facts, "settings": settings}


def reference_seconds(entry: Facts, entries: Sequence[Facts]) -> float | None:
    """Return the seconds of a step of the reference engine, measured or extrapolated.

    If it was not measured, it is extrapolated linearly in the number of classes, from the two
    largest settings among `entries` with a measurement that differ in nothing else. The result is
    None if there are no such settings.
    """

    def kind(other: Facts) -> list[Any]:
        return [other[key] for key in ("towers", "batch_size", "precision")]

    if entry["reference"]:
        return entry["reference"]["step_seconds"]
    known = sorted(
        (other["classes"], other["reference"]["step_seconds"])
        for other in entries
        if other["reference"] and kind(other) == kind(entry)
    )
    if len(known) < 2:
        return None
    (few, short), (more, long) = known[-2:]
    return long + (long - short) / (more - few) * (entry["classes"] - more)
