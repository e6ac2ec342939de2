"""Subcommands of `blocklora.publish`."""

from argparse import ArgumentParser, Namespace, _SubParsersAction
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from blocklora.errors import UserError

TABLES = (
    "fewshot",
    "cost",
    "efficiency",
    "statistics",
    "calibration",
    "ablation",
    "bounds",
    "compression",
    "spectra",
    "overlaps",
)
FIGURES = ("accuracy", "cost", "efficiency", "ablation", "bounds", "spectra")


def add_commands(subparsers: _SubParsersAction) -> None:
    """Add this package's subcommands to the command line."""
    aggregate = subparsers.add_parser(
        "aggregate",
        help="collect the records of a study's runs in one CSV file",
        description="Read metrics.json of every run the study names and write one row per run.",
    )
    aggregate.add_argument("--study", type=Path, required=True, help="study file")
    aggregate.add_argument("--runs", type=Path, required=True, help="folder of the runs")
    aggregate.add_argument("--output", type=Path, required=True, help="CSV file to write")
    aggregate.add_argument(
        "--partial", action="store_true", help="go on although runs of the study are missing"
    )
    aggregate.set_defaults(run=_aggregate)

    table = subparsers.add_parser(
        "table",
        help="write a table of a study",
        description="Write a table in the forms that the suffixes of the outputs name.",
    )
    table.add_argument("name", choices=TABLES)
    _add_inputs(table)
    table.add_argument("--shots", type=int, help="fewshot: only this shot count")
    table.add_argument(
        "--published", action="store_true", help="fewshot: show published rows as well"
    )
    _add_outputs(table, ".csv, .md, .tex, .html")
    table.set_defaults(run=_table)

    figure = subparsers.add_parser(
        "figure",
        help="draw a figure of a study",
        description="Draw a figure in the forms that the suffixes of the outputs name.",
    )
    figure.add_argument("name", choices=FIGURES)
    _add_inputs(figure)
    figure.add_argument("--backbone", help="which backbone, where the study has several")
    figure.add_argument(
        "--published", action="store_true", help="accuracy: show published curves as well"
    )
    _add_outputs(figure, ".pdf, .png, .csv (its numbers), .tex (with its caption)")
    figure.set_defaults(run=_figure)

    claims = subparsers.add_parser(
        "claims",
        help="give the verdict on each claim of the papers",
        description="Evaluate the claims on the files of a study. A claim whose files are not "
        "given, or which this study cannot decide, is 'not tested here'.",
    )
    _add_inputs(claims)
    _add_outputs(claims, ".json, .csv, .md, .html")
    claims.set_defaults(run=_claims)


def _add_inputs(parser: ArgumentParser) -> None:
    parser.add_argument("--study", type=Path, required=True, help="study file")
    for name, content in (
        ("aggregate", "the aggregate of the runs (runs.csv)"),
        ("bounds", "bounds.csv"),
        ("gaps", "gaps.csv"),
        ("spectra", "spectra.csv"),
        ("overlaps", "overlaps.csv"),
        ("compression", "compression.csv"),
        ("efficiency", "efficiency.csv"),
    ):
        parser.add_argument(f"--{name}", type=Path, metavar="CSV", help=content)


def _add_outputs(parser: ArgumentParser, suffixes: str) -> None:
    parser.add_argument(
        "--output", type=Path, nargs="+", required=True, metavar="FILE", help=suffixes
    )


def _made(options: Namespace, makers: Mapping[str, tuple[Callable, list[str], list]]) -> Any:
    """Return the table or figure that is asked for.

    Args:
        options: of the command.
        makers: by name the function, the files it needs, by their options, and further arguments.
            The function is given the results of the study if the first file is the aggregate,
            else the study; then the other files and the arguments.

    Raises:
        UserError: a file is not given, or is not what it should be.
    """
    from blocklora.publish.results import load_results
    from blocklora.study.model import load_study

    make, inputs, further = makers[options.name]
    missing = [name for name in inputs if getattr(options, name) is None]
    if missing:
        listed = " and ".join(f"--{name}" for name in missing)
        raise UserError(f"{options.command} {options.name} needs {listed}")
    files = [getattr(options, name) for name in inputs]
    if inputs[0] == "aggregate":
        return make(load_results(options.study, files[0]), *files[1:], *further)
    return make(load_study(options.study), *files, *further)


def _aggregate(options: Namespace) -> None:
    from blocklora.runs.aggregate import aggregate

    aggregate(options.study, options.runs, options.output, options.partial)


def _table(options: Namespace) -> None:
    from blocklora.publish.render import write_table
    from blocklora.publish.tables import ablation, comparison, cost, fewshot, theory

    makers = {
        "fewshot": (fewshot.fewshot_table, ["aggregate"], [options.shots, options.published]),
        "cost": (cost.cost_table, ["aggregate", "efficiency"], []),
        "efficiency": (cost.efficiency_table, ["efficiency"], []),
        "statistics": (comparison.statistics_table, ["aggregate"], []),
        "calibration": (comparison.calibration_table, ["aggregate"], []),
        "ablation": (ablation.ablation_table, ["aggregate"], []),
        "bounds": (theory.bounds_table, ["bounds"], [options.gaps]),
        "compression": (theory.compression_table, ["compression"], []),
        "spectra": (theory.spectra_table, ["spectra"], []),
        "overlaps": (theory.overlaps_table, ["overlaps"], []),
    }
    write_table(_made(options, makers), options.output)


def _figure(options: Namespace) -> None:
    from blocklora.publish.figures import ablation, accuracy, cost, theory
    from blocklora.publish.figures.canvas import write_drawing

    backbone = options.backbone
    makers = {
        "accuracy": (accuracy.accuracy_figure, ["aggregate"], [backbone, options.published]),
        "cost": (cost.cost_figure, ["aggregate"], [backbone]),
        "efficiency": (cost.efficiency_figure, ["efficiency"], [backbone]),
        "ablation": (ablation.ablation_figure, ["aggregate"], [backbone]),
        "bounds": (theory.bounds_figure, ["bounds"], [options.gaps, backbone]),
        "spectra": (theory.spectra_figure, ["spectra"], [backbone]),
    }
    write_drawing(_made(options, makers), options.output)


def _claims(options: Namespace) -> None:
    from blocklora.publish.claims import judge, load_claims
    from blocklora.publish.evidence import Evidence
    from blocklora.publish.verdicts import write_verdicts
    from blocklora.study.model import load_study

    evidence = Evidence.gather(
        load_study(options.study),
        aggregate=options.aggregate,
        bounds=options.bounds,
        gaps=options.gaps,
        spectra=options.spectra,
        compression=options.compression,
        efficiency=options.efficiency,
    )
    write_verdicts(evidence.study, judge(load_claims(), evidence), options.output)
