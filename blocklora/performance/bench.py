"""The benchmark of the engines in pieces, whose results are kept in a JSON file as they come.

A piece is one setting, and on a GPU it should take less than two minutes. The file is written again
after each of them, so a benchmark that is cut off has lost no more than one, and the same call
continues it.
"""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from blocklora.backbones.published import published_config
from blocklora.engine.plan import MIB, USABLE_SHARE
from blocklora.files import json_digest, read_json, write_json, write_text
from blocklora.performance.entries import Facts, describe, setting_name
from blocklora.performance.machine import Machine, facts
from blocklora.performance.measure import measure, settings
from blocklora.performance.projection import imagenet_minutes, paper_hours
from blocklora.provenance import code_digest

# The default settings take minutes on a small CPU; on a GPU they include those of the paper, and
# begin with the ones that tell most: the datasets with the longest and the shortest steps. The
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
        "classes": [1000, 10, 100],
        "batch_sizes": [32],
        "towers": ["both", "vision", "text"],
        "precisions": ["fp16", "bf16", "fp32"],
        "reference_classes": 1000,
    },
}
# The code that decides what is measured and how, with all that it imports of the engines.
MEASURING = ("entries", "machine", "measure", "protocol", "traffic", "trial")

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
    output: str | Path | None = None,
    page: str | Path | None = None,
) -> Facts:
    """Measure every combination of settings and return the content of the JSON file.

    The arguments are the options of `blocklora bench`; None stands for `DEFAULTS`, and `memory` is
    in bytes. Settings that the file `output` already has from this machine are not measured again.
    Without `page`, this function does not need the packages of the command line.

    Raises:
        UserError: The device is not available, the model is unknown, its file or `output` cannot be
            read or written, or memory is too small for the fast engine.
    """
    usual, machine = DEFAULTS[device], Machine(device, threads)
    if model.endswith(".safetensors"):
        from blocklora.theory.sources import read_shape  # imports the packages for study files

        shape = read_shape(Path(model))
    else:
        shape = published_config(model)
    if precisions is None:  # a GPU may lack one of them
        able = [precision for precision in usual["precisions"] if machine.can_compute_in(precision)]
        precisions = able or usual["precisions"]
    for precision in precisions:
        machine.prepare(precision)
    chosen = list(
        settings(
            shape,
            _different(classes or usual["classes"]),
            _different(batch_sizes or usual["batch_sizes"]),
            _different(towers or usual["towers"]),
            _different(map(str, precisions)),
        )
    )
    budget = memory and int(USABLE_SHARE * memory)
    about = {
        **facts(machine, rounds),
        "usable_bytes": budget,
        "shape": json_digest(asdict(shape)),
        "code": code_digest(*(f"blocklora.performance.{module}" for module in MEASURING)),
    }
    entries = _measured_before(output, about)
    for number, setting in enumerate(chosen, 1):
        name = f"setting {number} of {len(chosen)}: {setting_name(describe(setting))}"
        if any(entry | describe(setting) == entry for entry in entries):
            logger.info("%s: measured before", name)
            continue
        logger.info("%s", name)
        with_reference = len(setting.prompts) <= usual["reference_classes"]
        entries.append(measure(setting, machine, rounds, budget, with_reference))
        logger.info("  %s", summary(entries[-1]))
        _write(document(entries, about), output, page)
    found = document(entries, about)
    _write(found, output, page)
    return found


def _different(values: Iterable[Any]) -> list[Any]:
    """Return values in their order without repetition."""
    return list(dict.fromkeys(values))


def _measured_before(output: str | Path | None, about: Facts) -> list[Facts]:
    """Return the entries in `output`; none if something in `about` was different then."""
    if output is None or not Path(output).exists():
        return []
    known = read_json(output)
    known = known if isinstance(known, dict) else {}
    different = [key for key, value in about.items() if known.get(key) != value]
    if different:
        names = ", ".join(different)
        logger.info("%s: measured with other values of %s, so it is replaced", output, names)
        return []
    return known["settings"]


def _write(found: Facts, output: str | Path | None, page: str | Path | None) -> None:
    if output is not None:
        write_json(output, found)
    if page is not None:
        from blocklora.performance.report import page as page_of  # imports tabulate

        write_text(page, page_of(found))


def summary(entry: Facts) -> str:
    """Return the results of a piece in one line."""
    words = []
    for name in ("fast", "unrecorded", "reference"):
        if name in entry["ran_out_of_memory"]:
            words.append(f"{name} out of memory")
        elif entry[name]:
            engine = entry[name]
            mib = engine["peak_memory_bytes"] / MIB
            words.append(f"{name} {engine['step_seconds']:.3g} s per step, {mib:.0f} MiB")
    if entry["fast_share_of_product_rate"]:
        words.append(f"{entry['fast_share_of_product_rate']:.0%} of the rate")
    return "; ".join([*words, f"measured in {entry['piece_seconds']:.0f} s"])


def document(entries: Sequence[Facts], about: Facts) -> Facts:
    """Return the content of the JSON file; `about` describes the machine and the versions."""
    compared = []
    for entry in entries:
        reference, fast = reference_seconds(entry, entries), entry["fast"]
        comparison = {
            "reference_step_seconds": reference,
            "reference_is_extrapolated": reference is not None and entry["reference"] is None,
            "speedup": reference and fast and reference / fast["step_seconds"],
            "imagenet_minutes": imagenet_minutes(entry),
        }
        compared.append({**entry, **comparison})
    both = [entry for entry in entries if len(entry["towers"]) == 2]
    paper = {}
    for precision in _different(entry["precision"] for entry in both):
        hours = paper_hours([entry for entry in both if entry["precision"] == precision])
        if hours is not None:
            paper[precision] = hours
    return {"schema": 2, **about, "settings": compared, "paper": paper}


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
