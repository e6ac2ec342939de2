"""The results of the benchmark as a page of tables."""

from collections.abc import Mapping, Sequence
from typing import Any

from tabulate import tabulate

from blocklora.engine.plan import MIB
from blocklora.performance.forecast import chunks_text
from blocklora.performance.measure import IMAGENET_STEPS, IMAGENET_TEST, Facts, setting_name


def page(found: Mapping[str, Any]) -> str:
    """Return the results of the benchmark as Markdown.

    The page has the tables, their explanations, the machine and the versions. `found` is the
    document that `bench.document` returns.
    """
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
    """Return rows, which map headings to texts, as Markdown that also reads well as plain text."""
    aligned = ("left", *["right"] * (len(rows[0]) - 1))
    return tabulate(rows, "keys", "pipe", disable_numparse=True, colalign=aligned)


def _mib(size: int) -> str:
    return f"{size / MIB:.0f}"
