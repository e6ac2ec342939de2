"""The command that computes the measures of `blocklora/theory/` and of the experiments."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from blocklora.commands import options
from blocklora.engine.precisions import resolve_precision
from blocklora.errors import UserError


def _measures() -> list[tuple[str, str]]:
    from blocklora.experiments import measures

    return [(name, measure.about) for name, measure in measures().items()]


def measure(
    name: Annotated[str, Argument(help="One of the names below.", autocompletion=_measures)],
    study: options.Study,
    results: options.Results = None,
    device: options.Device = "cpu",
    precision: options.Precision = "auto",
    output: Annotated[
        list[Path] | None, Option(help="CSV files to write (default: as in the workflow)")
    ] = None,
) -> None:
    """Compute bounds, gaps, spectra, compressed sizes or costs.

    A measure writes one CSV file, except spectra, which writes spectra.csv and overlaps.csv.

    Example: blocklora measure bounds --study paper --output bounds.csv
    Example: blocklora measure spectra --study mini
    """
    from pkgutil import resolve_name

    from blocklora.csvfiles import write_rows
    from blocklora.experiments import measures
    from blocklora.publish.inputs import evidence_file
    from blocklora.theory.context import Context

    known = measures()
    options.check_name("measure", name, known)
    wanted, chosen = known[name], options.open_study(study)
    folder = options.results_of(chosen, results)
    output = output or [folder / evidence_file(table) for table in wanted.tables]
    if len(output) != len(wanted.tables):
        names = ", ".join(f"{table}.csv" for table in wanted.tables)
        raise UserError(
            f"--output names {len(output)} files, but {name} writes {len(wanted.tables)}: {names}"
        )
    precision = resolve_precision(precision, device)
    if wanted.on_gpu:
        from blocklora.runs.gpu import claim_gpu

        claim_gpu(device)  # before torch is imported
        from blocklora.runs.device import require_device

        require_device(device, precision)
    found = resolve_name(wanted.compute)(Context(chosen, folder, device, precision))
    if len(wanted.tables) == 1:
        found = dict.fromkeys(wanted.tables, found)
    for file, (table, columns) in zip(output, wanted.tables.items(), strict=True):
        write_rows(file, columns, found[table])
