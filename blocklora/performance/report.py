"""The results of the benchmark as a page of tables."""

from collections.abc import Mapping, Sequence
from typing import Any

from tabulate import tabulate

from blocklora.engine.plan import MIB
from blocklora.performance.entries import Facts, setting_name
from blocklora.performance.forecast import chunks_text
from blocklora.performance.projection import IMAGENET_STEPS
from blocklora.performance.protocol import EUROSAT_CLASSES, IMAGENET_CLASSES, IMAGENET_TEST
from blocklora.performance.traffic import KINDS


def page(found: Mapping[str, Any]) -> str:
    """Return the results of the benchmark as Markdown.

    The page has the tables, their explanations, the machine and the versions. `found` is the
    document that `bench.document` returns.
    """
    entries = found["settings"]
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    memory = "allocated on the GPU" if found["device"] == "cuda" else "of the engine's process"
    parts = [
        f"{found['device_name']}, {found['threads']} threads; {versions}; medians of up to "
        f"{found['rounds']} rounds.",
        _engines(entries),
        f"Memory is the peak {memory}. Operations are those of the fast engine, by formula and as "
        "counted by PyTorch; the rate is that of a large matrix product. ~ is extrapolated "
        "linearly from the two largest numbers of classes that were measured.",
    ]
    if found["device"] == "cuda":
        parts.append(
            "The fast engine replays a step as a CUDA graph; without graph, it launches each "
            "kernel. Reserved is the peak that PyTorch's allocator holds for the fast engine, "
            "graph included."
        )
    if any(entry["parts_seconds"] for entry in entries):
        parts += [
            "Seconds of a step by part; the floor is operations divided by the rate. The adapter "
            "is its low-rank paths with dropout. The optimizer is measured alone. Augmentation is "
            "done by threads of the host beside the steps on a GPU, and before each step on a CPU.",
            _part_table(entries),
        ]
        if found["device"] == "cuda":
            parts.append(
                "Launch gaps are the time of a step less that of its kernels and copies, in which "
                "the GPU waits for the next one to be launched or to start. They are contained in "
                "the other parts."
            )
    parts += [
        "Operations of a step by kind, views left out, as counted on tensors without data, and the "
        "bytes that they read and write if each of them reads its inputs once. Products and "
        "attention are those whose floating-point operations PyTorch counts. Masks are counted "
        "layer by layer, as a CPU makes them; a GPU needs fewer operations for them.",
        _traffic_table(entries),
    ]
    if any(entry["kernels"] for entry in entries):
        parts.append("Kernels are those that the GPU ran in a step, copies included.")
    parts += [
        f"{entry['precision']}: {IMAGENET_STEPS} steps on ImageNet and the test of "
        f"{IMAGENET_TEST} images take {entry['imagenet_minutes']:.1f} minutes, projected from the "
        "measured steps and tests."
        for entry in entries
        if entry["imagenet_minutes"] is not None and len(entry["towers"]) == 2
    ]
    parts += [
        f"{precision}: the {paper['steps']} training steps of the paper take {paper['hours']:.1f} "
        "hours without tests, projected to each dataset's number of prompt tokens from the "
        f"measured steps with {EUROSAT_CLASSES} and {IMAGENET_CLASSES} classes."
        for precision, paper in found["paper"].items()
    ]
    return "\n\n".join(parts) + "\n"


def _engines(entries: Sequence[Facts]) -> str:
    rows = []
    for entry in entries:
        engines = [entry[name] or {} for name in ("fast", "unrecorded", "reference")]
        fast, unrecorded, reference = engines
        absent = dict.fromkeys(entry["ran_out_of_memory"], "out of memory")
        estimate = "~" if entry["reference_is_extrapolated"] else ""
        no_reference = absent.get("reference", "")
        seconds = _shown(entry["reference_step_seconds"], ".3g")
        rows.append(
            {
                "setting": setting_name(entry),
                "reference s": estimate + seconds if seconds else no_reference,
                "fast s": _shown(fast.get("step_seconds"), ".3g") or absent.get("fast", ""),
                "without graph s": _shown(unrecorded.get("step_seconds"), ".3g")
                or absent.get("unrecorded", ""),
                "rounds": str(len(fast.get("rounds_seconds", ()))),
                "times faster": estimate + _shown(entry["speedup"], ".1f"),
                "images/s": _shown(fast.get("images_per_second"), ".3g"),
                "reference MiB": _mib(reference.get("peak_memory_bytes")) or no_reference,
                "fast MiB": _mib(fast.get("peak_memory_bytes")),
                "memory share": _shown(entry["memory_share"], ".2f"),
                "planned MiB": _mib(entry["planned_memory_bytes"]),
                "reserved MiB": _mib(fast.get("reserved_memory_bytes")),
                "chunks": chunks_text(entry["chunks"]),
                "TFLOP formula": f"{entry['flops_formula'] / 1e12:.3f}",
                "TFLOP counted": f"{entry['flops_counted'] / 1e12:.3f}",
                "rate TFLOP/s": _shown(entry["product_rate_flops"], ".3g", 1e12),
                "share of rate": _shown(entry["fast_share_of_product_rate"], ".0%"),
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
        seconds |= {"step": step, "floor": floor, "above the floor": floor and step - floor}
        shown = {name: _shown(value, ".3g") for name, value in seconds.items()}
        rows.append({"setting": setting_name(entry), **shown})
    return _table(rows)


def _traffic_table(entries: Sequence[Facts]) -> str:
    rows = []
    for entry in entries:
        counts, moved = entry["operations"], entry["bytes"]
        rows.append(
            {
                "setting": setting_name(entry),
                **{kind: str(counts[kind]) for kind in KINDS},
                "operations": str(sum(counts.values())),
                **{f"{kind} GB": f"{moved[kind] / 1e9:.3g}" for kind in KINDS},
                "GB": f"{sum(moved.values()) / 1e9:.3g}",
                "kernels": _shown(entry["kernels"], ".0f"),
                "busy s": _shown(entry["busy_seconds"], ".3g"),
            }
        )
    return _table(rows)


def _table(rows: Sequence[Mapping[str, str]]) -> str:
    """Return rows, which map headings to texts, as Markdown that also reads well as plain text.

    Columns in which all rows are empty are left out.
    """
    filled = [name for name in rows[0] if any(row[name] for row in rows)]
    shown = [{name: row[name] for name in filled} for row in rows]
    aligned = ("left", *["right"] * (len(filled) - 1))
    return tabulate(shown, "keys", "pipe", disable_numparse=True, colalign=aligned)


def _shown(value: float | None, how: str, unit: float = 1) -> str:
    return "" if value is None else format(value / unit, how)


def _mib(size: int | None) -> str:
    return _shown(size, ".0f", MIB)
