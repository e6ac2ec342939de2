"""Spectra of all runs of a study, and the overlap of the methods within each cell of it."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from blocklora.adapters.store import load_adapter
from blocklora.study.model import Run, Study
from blocklora.study.pairs import block_pairs, merged_pairs
from blocklora.theory.spectra import overlap_rows, spectra, spectrum_rows

Rows = list[dict[str, Any]]


def compare_runs(study: Study, runs: Sequence[Run], folder: Path) -> tuple[Rows, Rows]:
    """Return the rows of spectra.csv and those of overlaps.csv.

    Block-LoRA is compared with LoRA of the same rank, and with LoRA of its merged arms, where
    both were trained on the same backbone, dataset, shot count and seed.

    Args:
        study: the study of the runs.
        runs: those with an adapter.
        folder: of all runs.

    Raises:
        UserError: an adapter file is missing or damaged.
    """
    cells: dict[tuple[str, str, int, int], list[Run]] = {}
    for run in runs:
        cells.setdefault((run.backbone, run.dataset, run.shots, run.seed), []).append(run)
    pairs = block_pairs(study) + merged_pairs(study)
    rows: Rows = []
    overlaps: Rows = []
    for members in tqdm(cells.values(), desc="spectra", unit="cell", disable=None, leave=False):
        found = {}
        for run in members:
            adapter = load_adapter(folder / run.folder / "adapter.safetensors")
            found[run.method] = spectra(adapter)
            rows += [asdict(run) | row for row in spectrum_rows(adapter, found[run.method])]
        for method, other in pairs:
            if method in found and other in found:
                pair = asdict(members[0]) | {"method": method, "other_method": other}
                overlaps += [pair | row for row in overlap_rows(found[method], found[other])]
    return rows, overlaps
