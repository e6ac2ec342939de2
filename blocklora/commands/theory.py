"""The subcommand that computes the measures of `blocklora/theory/`."""

from argparse import Namespace, RawDescriptionHelpFormatter, _SubParsersAction
from pathlib import Path
from textwrap import fill

from blocklora.commands.arguments import add_command, add_options
from blocklora.errors import UserError
from blocklora.experiments import measures
from blocklora.study.model import load_study


def add_commands(subparsers: _SubParsersAction) -> None:
    """Add this package's subcommands to the command line."""
    known = measures()
    parser = add_command(subparsers, _measure)
    parser.formatter_class = RawDescriptionHelpFormatter
    parser.description = "Compute a measure of a study and write its CSV files:\n\n" + "\n".join(
        fill(f"{measure.name}: {measure.about}", 80, subsequent_indent="    ")
        for measure in known.values()
    )
    parser.add_argument("name", choices=known, metavar="MEASURE", help="one of the above")
    add_options(parser, "study", "results", "device", "precision")
    parser.add_argument(
        "--output",
        type=Path,
        nargs="+",
        required=True,
        metavar="FILE",
        help="CSV file to write; spectra writes two, spectra.csv and overlaps.csv",
    )


def _measure(options: Namespace) -> None:
    """Compute bounds, gaps, spectra, compressed sizes or costs of a study."""
    from importlib import import_module

    from blocklora.csvfiles import write_rows
    from blocklora.theory.context import Context

    measure = measures()[options.name]
    if len(options.output) != len(measure.tables):
        names = ", ".join(f"{table}.csv" for table in measure.tables)
        raise UserError(
            f"--output names {len(options.output)} files, but {measure.name} writes "
            f"{len(measure.tables)}: {names}"
        )
    if measure.on_gpu:
        from blocklora.runs.device import require_device

        require_device(options.device, options.precision)
    study = load_study(options.study)
    results = options.results or Path("results", study.name)
    module, function = measure.compute.split(":")
    compute = getattr(import_module(module), function)
    found = compute(Context(study, results, options.device, options.precision))
    if len(measure.tables) == 1:
        found = {measure.name: found}
    for path, (table, columns) in zip(options.output, measure.tables.items(), strict=True):
        write_rows(path, columns, found[table])
