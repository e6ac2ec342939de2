"""Subcommands of `blocklora.publish`; tables and figures follow from its catalogue."""

from argparse import ArgumentParser, Namespace, _SubParsersAction
from itertools import product
from pathlib import Path
from typing import Any

from blocklora.commands.arguments import positive
from blocklora.errors import UserError

# What the options of items are: see `Item.options`.
OPTIONS: dict[str, dict[str, Any]] = {
    "shots": {"type": positive, "help": "only this shot count"},
    "published": {"action": "store_true", "help": "show published numbers as well"},
    "backbone": {"help": "which backbone, where the study has several"},
}

# The forms in which the whole study is published.
FORMS = {"tables": (".csv", ".md", ".tex", ".html"), "figures": (".pdf", ".csv", ".png")}


def add_commands(subparsers: _SubParsersAction) -> None:
    """Add this package's subcommands to the command line."""
    aggregate = subparsers.add_parser(
        "aggregate",
        help="collect the records of a study's runs in one CSV file",
        description="Write a row for each run of a study, from its record and predictions.",
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
    _add_items(table, "table")
    _add_files(table, ".csv, .md, .tex, .html")
    table.set_defaults(run=_table)

    figure = subparsers.add_parser(
        "figure",
        help="draw a figure of a study",
        description="Draw a figure in the forms that the suffixes of the outputs name.",
    )
    _add_items(figure, "figure")
    _add_files(figure, ".pdf, .png, .csv (its numbers), .tex (with its caption)")
    figure.set_defaults(run=_figure)

    publish = subparsers.add_parser(
        "publish",
        help="write all tables or draw all figures of a study",
        description="Write all tables of a study, or draw all its figures, in every form.",
    )
    publish.add_argument("what", choices=tuple(FORMS))
    _add_results(publish)
    publish.set_defaults(run=_publish)

    claims = subparsers.add_parser(
        "claims",
        help="give the verdict on each claim of the papers",
        description="Evaluate the claims on the files of a study. A claim whose files are not "
        "there, or which this study cannot decide, is 'not tested here'.",
    )
    _add_files(claims, ".json, .csv, .md, .html")
    claims.set_defaults(run=_claims)


def _add_items(parser: ArgumentParser, kind: str) -> None:
    from blocklora.experiments import entries

    items = [item for item in entries() if item.kind == kind]
    parser.add_argument("name", choices=[item.entry for item in items])
    for option, settings in OPTIONS.items():
        having = [item.entry for item in items if option in item.options]
        if having:
            whose = "" if len(having) == len(items) else f"{', '.join(having)}: "
            parser.add_argument(f"--{option}", **settings | {"help": whose + settings["help"]})


def _add_results(parser: ArgumentParser) -> None:
    parser.add_argument("--study", type=Path, required=True, help="study file")
    parser.add_argument(
        "--results",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder of the study's results: runs.csv, theory/, runs/",
    )


def _add_files(parser: ArgumentParser, suffixes: str) -> None:
    _add_results(parser)
    parser.add_argument(
        "--output", type=Path, nargs="+", required=True, metavar="FILE", help=suffixes
    )


def _aggregate(options: Namespace) -> None:
    from blocklora.runs.aggregate import aggregate

    aggregate(options.study, options.runs, options.output, options.partial)


def _publish(options: Namespace) -> None:
    from blocklora.experiments import items
    from blocklora.publish.results import load_results

    results = load_results(options.study, options.results)
    wanted = [item for item in items(results.study) if f"{item.kind}s" == options.what]
    backbones = results.study.backbones if options.what == "figures" else [None]
    for backbone, item in product(backbones, wanted):
        made = item.maker()(results, **item.values(backbone))
        stem = options.results / options.what / (backbone or "") / item.name
        _write(made, item.kind, [stem.with_name(stem.name + form) for form in FORMS[options.what]])


def _write(made: Any, kind: str, output: list[Path]) -> None:
    if kind == "table":
        from blocklora.publish.render import write_table

        write_table(made, output)
    else:
        from blocklora.publish.figures.canvas import write_drawing

        write_drawing(made, output)


def _table(options: Namespace) -> None:
    _write(_made(options), "table", options.output)


def _figure(options: Namespace) -> None:
    _write(_made(options), "figure", options.output)


def _made(options: Namespace) -> Any:
    """Return the table or figure that is asked for.

    Raises:
        UserError: it does not take an option that is given, or a file it is made from is missing or
            not what it should be.
    """
    from blocklora.experiments import entries
    from blocklora.publish.results import load_results

    kind, name = options.command, options.name
    (item,) = [item for item in entries() if (item.kind, item.entry) == (kind, name)]
    given = {option: getattr(options, option, None) for option in OPTIONS}
    for option, value in given.items():
        if value and option not in item.options:
            raise UserError(f"{kind} {name} does not take --{option}")
    results = load_results(options.study, options.results)
    return item.maker()(results, **{option: given[option] for option in item.options})


def _claims(options: Namespace) -> None:
    from blocklora.publish.claims import judge, load_claims
    from blocklora.publish.results import load_results
    from blocklora.publish.verdicts import write_verdicts

    results = load_results(options.study, options.results)
    verdicts = judge(load_claims(), results)
    write_verdicts(results.study, verdicts, options.output)
