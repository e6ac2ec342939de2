"""The results of the benchmark, as the content of a JSON file and as a page of tables."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from blocklora.backbones.published import published_config
from blocklora.engine.plan import MIB, USABLE_SHARE
from blocklora.performance.bench import (
    IMAGENET_STEPS,
    IMAGENET_TEST,
    Facts,
    describe,
    measure,
    settings,
)
from blocklora.performance.forecast import chunks_text
from blocklora.performance.machine import Machine, facts

# What is measured by default: minutes on a small CPU, the paper's settings on a GPU. The reference
# engine is run with few classes on a CPU, where more would take hours.
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
        UserError: The device is not available, or memory is too small for the fast engine.
    """
    usual, machine = DEFAULTS[device], Machine(device, threads)
    if model.endswith(".safetensors"):
        from blocklora.theory.sources import read_shape  # which needs what study files need

        shape = read_shape(Path(model))
    else:
        shape = published_config(model)
    precisions = list(map(str, precisions or usual["precisions"]))
    chosen = list(
        settings(
            shape,
            sorted(set(classes or usual["classes"])),
            batch_sizes or usual["batch_sizes"],
            towers or usual["towers"],
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
    """Return the content of the JSON file; `facts` are about the machine and the versions."""
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
    """Return the time of a step of the reference engine, measured or extrapolated.

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


def page(found: Mapping[str, Any]) -> str:
    """Return the tables of a document and what they were measured on, as Markdown."""
    entries = found["settings"]
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    memory = "allocated on the GPU" if found["device"] == "cuda" else "of the engine's process"
    parts = [
        f"{found['device_name']}, {found['threads']} threads; {versions}; medians of "
        f"{found['rounds']} rounds.",
        _engines(entries),
        f"Memory is the peak {memory}. Operations are those of the fast engine, by formula and as "
        "counted by PyTorch; the rate is that of a large matrix product. ~ is extrapolated "
        "linearly from the two largest numbers of classes that were measured.",
    ]
    if any(entry["parts_seconds"] for entry in entries):
        parts += [
            "Seconds of a step by part; the floor is operations divided by the rate. The adapter "
            "is its low-rank paths with dropout. Augmentation is done by threads of the host "
            "beside the steps on a GPU, and before each step on a CPU.",
            _part_table(entries),
        ]
    parts += [
        f"{entry['precision']}: {IMAGENET_STEPS} steps on ImageNet and the test of "
        f"{IMAGENET_TEST} images take {entry['imagenet_minutes']:.1f} minutes, projected from the "
        "measured steps and tests."
        for entry in entries
        if entry["imagenet_minutes"] is not None and len(entry["towers"]) == 2
    ]
    return "\n\n".join(parts) + "\n"


def _engines(entries: Sequence[Facts]) -> str:
    rows = []
    for entry in entries:
        fast, reference = entry["fast"], entry["reference"]
        seconds = entry["reference_step_seconds"]
        mark = "~" if entry["reference_is_extrapolated"] else ""
        absent = "out of memory" if entry["reference_ran_out_of_memory"] else ""
        rows.append(
            {
                "setting": setting_name(entry),
                "reference s": f"{mark}{seconds:.3g}" if seconds else absent,
                "fast s": f"{fast['step_seconds']:.3g}",
                "times faster": f"{mark}{entry['speedup']:.1f}" if seconds else "",
                "images/s": f"{fast['images_per_second']:.3g}",
                "reference MiB": _mib(reference["peak_memory_bytes"]) if reference else absent,
                "fast MiB": _mib(fast["peak_memory_bytes"]),
                "memory share": f"{entry['memory_share']:.2f}" if reference else "",
                "planned MiB": _mib(entry["planned_memory_bytes"]),
                "chunks": chunks_text(entry["chunks"]),
                "TFLOP formula": f"{entry['flops_formula'] / 1e12:.3f}",
                "TFLOP counted": f"{fast['flops_counted'] / 1e12:.3f}",
                "rate TFLOP/s": f"{entry['product_rate_flops'] / 1e12:.3g}",
                "share of rate": f"{entry['fast_share_of_product_rate']:.0%}",
            }
        )
    return _table(rows)


def _part_table(entries: Sequence[Facts]) -> str:
    parted = [entry for entry in entries if entry["parts_seconds"]]
    rows = []
    for entry in parted:
        step, floor = entry["fast"]["step_seconds"], entry["floor_seconds"]
        seconds = {name: None for other in parted for name in other["parts_seconds"]}
        seconds |= entry["parts_seconds"]
        seconds |= {"step": step, "floor": floor, "above the floor": step - floor}
        shown = {name: "" if x is None else f"{x:.3g}" for name, x in seconds.items()}
        rows.append({"setting": setting_name(entry), **shown})
    return _table(rows)


def _table(rows: Sequence[Mapping[str, str]]) -> str:
    """Return rows, by the names of columns, as a Markdown table that is also readable as text."""
    aligned = ("left", *["right"] * (len(rows[0]) - 1))
    return tabulate(rows, "keys", "pipe", disable_numparse=True, colalign=aligned)


def setting_name(entry: Facts) -> str:
    """Return the setting of an entry in words."""
    towers = " and ".join(entry["towers"])
    return (
        f"{entry['classes']} classes, batch {entry['batch_size']}, {towers}, {entry['precision']}"
    )


def _mib(size: int) -> str:
    return f"{size / MIB:.0f}"
