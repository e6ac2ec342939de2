"""Spectra of all runs of a study, and the overlap of the methods within each cell of it."""

from collections.abc import Sequence
from dataclasses import asdict
from itertools import combinations
from pathlib import Path
from typing import Any

from tqdm import tqdm

from blocklora.adapters.store import load_adapter
from blocklora.study.model import Run
from blocklora.theory.spectra import overlap_rows, spectra, spectrum_rows

Rows = list[dict[str, Any]]


def compare_runs(runs: Sequence[Run], folder: Path) -> tuple[Rows, Rows]:
    """Return the rows of spectra.csv and those of overlaps.csv.

    Runs of one backbone, dataset, shot count and seed are compared in pairs, in their order.

    Args:
        runs: those with an adapter.
        folder: of all runs.

    Raises:
        UserError: an adapter file is missing or damaged.
    """
    cells: dict[tuple[str, str, int, int], list[Run]] = {}
    for run in runs:
        cells.setdefault((run.backbone, run.dataset, run.shots, run.seed), []).append(run)
    rows: Rows = []
    overlaps: Rows = []
    for members in tqdm(cells.values(), desc="spectra", unit="cell", disable=None, leave=False):
        found = {}
        for run in members:
            adapter = load_adapter(folder / run.folder / "adapter.safetensors")
            found[run] = spectra(adapter)
            rows += [asdict(run) | row for row in spectrum_rows(adapter, found[run])]
        for one, other in combinations(members, 2):
            pair = asdict(one) | {"other_method": other.method}
            overlaps += [pair | row for row in overlap_rows(found[one], found[other])]
    return rows, overlaps
