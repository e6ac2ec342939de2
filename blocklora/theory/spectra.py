"""The spectra of all runs of a study, and the overlap of methods trained on the same images."""

from dataclasses import asdict
from typing import Any

from tqdm import tqdm

from blocklora.adapters.store import load_adapter
from blocklora.study.pairs import block_pairs, merged_pairs
from blocklora.study.run import Run
from blocklora.theory.context import Context, adapted_runs
from blocklora.theory.decomposition import overlap_rows, spectra, spectrum_rows


def rows(context: Context) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of spectra.csv and of overlaps.csv.

    Block-LoRA is compared with LoRA of the same rank and with LoRA of the rank of its merged arms,
    if both were trained with the same backbone, dataset, shots and seed.

    Raises:
        UserError: runs.csv or an adapter file is missing or damaged, or runs.csv belongs to another
            study.
    """
    cells: dict[tuple[str, str, int, int], list[Run]] = {}
    for run, _ in adapted_runs(context):
        cells.setdefault((run.backbone, run.dataset, run.shots, run.seed), []).append(run)
    pairs = block_pairs(context.study) + merged_pairs(context.study)
    found: dict[str, list[dict[str, Any]]] = {"spectra": [], "overlaps": []}
    for members in tqdm(cells.values(), desc="spectra", unit="cell", disable=None, leave=False):
        of_method = {}
        for run in members:
            adapter = load_adapter(context.adapter(run))
            of_method[run.method] = spectra(adapter)
            for row in spectrum_rows(adapter, of_method[run.method]):
                found["spectra"].append(asdict(run) | row)
        for method, other in pairs:
            if method in of_method and other in of_method:
                pair = asdict(members[0]) | {"method": method, "other_method": other}
                for row in overlap_rows(of_method[method], of_method[other]):
                    found["overlaps"].append(pair | row)
    return found
