"""Commands that collect runs and publish tables, figures and verdicts on claims."""

from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from typer import Argument, Context, Option

from blocklora.commands import options
from blocklora.commands.options import Outputs, Results, Study
from blocklora.errors import UserError

if TYPE_CHECKING:
    from blocklora.publish import results as publish_results

# The formats in which the workflow publishes a study.
FORMS = {
    "table": (".csv", ".md", ".tex", ".html"),
    "figure": (".pdf", ".csv", ".png"),
    "claims": (".json", ".csv", ".md", ".html"),
}
WRITERS = {
    "table": "blocklora.publish.render:write_table",
    "figure": "blocklora.publish.figures.canvas:write_drawing",
}
Published = Annotated[bool | None, Option(help="Show published numbers, too (default: yes).")]


def _names(ctx: Context) -> list[tuple[str, str]]:
    """Return the names of all tables, or of all figures, each with its section and its options."""
    from blocklora.experiments import entries

    items = [item for item in entries() if item.kind == ctx.info_name]
    return [(item.entry, "; --".join([item.section, *item.options])) for item in items]


Name = Annotated[str, Argument(help="One of the names below.", autocompletion=_names)]


def aggregate(study: Study, results: Results = None, partial: bool = False) -> None:
    """Collect the runs of a study in one CSV file.

    The file is runs.csv in the folder of the results. It has a row for each run, made from the
    record of its fit and from its predictions.

    Args:
        partial: Go on although runs of the study are missing.

    Example: blocklora aggregate --study mini
    """
    from blocklora.runs.aggregate import aggregate
    from blocklora.study import places

    chosen = options.open_study(study)
    folder = options.results_of(chosen, results)
    aggregate(chosen.path, folder / places.RUNS, folder / "runs.csv", partial)


def table(
    name: Name,
    study: Study,
    results: Results = None,
    shots: options.Shots = None,
    published: Published = None,
    output: Outputs = None,
) -> None:
    """Write a table of a study, as .csv, .md, .tex or .html.

    Example: blocklora table fewshot --study mini --shots 4
    Example: blocklora table cost --study mini --output cost.md cost.tex
    """
    _make("table", name, study, results, output, shots=shots, published=published)


def figure(
    name: Name,
    study: Study,
    results: Results = None,
    backbone: str | None = None,
    published: Published = None,
    output: Outputs = None,
) -> None:
    """Draw a figure of a study, as .pdf, .png, .csv or .tex.

    The .csv has the numbers that the figure shows, and the .tex its caption.

    Args:
        backbone: Name of the backbone, if the study has several.

    Example: blocklora figure accuracy --study mini
    Example: blocklora figure cost --study mini --output cost.pdf cost.png
    """
    _make("figure", name, study, results, output, backbone=backbone, published=published)


def publish(
    what: Annotated[Literal["tables", "figures"], Argument(help="What to make.")],
    study: Study,
    results: Results = None,
) -> None:
    """Write all tables of a study, or draw all its figures.

    Example: blocklora publish tables --study mini
    """
    from blocklora.experiments import items

    found = _results(study, results)
    wanted = [item for item in items(found.study) if f"{item.kind}s" == what]
    backbones = found.study.backbones if what == "figures" else [""]
    for backbone, item in product(backbones, wanted):
        _write(found, item, item.values(backbone), backbone)


def claims(study: Study, results: Results = None, output: Outputs = None) -> None:
    """Give the verdict on each claim of the papers.

    The formats are .json, .csv, .md and .html. A claim is 'not tested here' if this study cannot
    decide it, or if the files that decide it are missing.

    Example: blocklora claims --study mini
    Example: blocklora claims --study mini --output claims.md claims.json
    """
    from blocklora.publish.claims import judge, load_claims
    from blocklora.publish.verdicts import write_verdicts

    found = _results(study, results)
    output = output or [found.folder / f"claims{form}" for form in FORMS["claims"]]
    write_verdicts(found.study, judge(load_claims(), found), output)


def _results(study: str, results: Path | None) -> "publish_results.Results":
    from blocklora.publish.results import load_results

    chosen = options.open_study(study)
    return load_results(chosen.path, options.results_of(chosen, results))


def _make(
    kind: str, name: str, study: str, results: Path | None, output: list[Path] | None, **given: Any
) -> None:
    """Make a table or figure and write it to `output`, or to where the workflow puts it.

    Raises:
        UserError: There is no such table or figure, it does not take one of the options, or a file
            that it is made from is missing or wrong.
    """
    from dataclasses import replace

    from blocklora.experiments import entries

    known = {item.entry: item for item in entries() if item.kind == kind}
    options.check_name(kind, name, known)
    given = {option: value for option, value in given.items() if value is not None}
    for option in given:
        if option not in known[name].options:
            raise UserError(f"{kind} {name} does not take --{option}")
    found, item = _results(study, results), replace(known[name], shots=given.get("shots"))
    backbone = given.get("backbone", next(iter(found.study.backbones)))
    _write(found, item, item.values() | given, backbone, output)


def _write(
    results: "publish_results.Results",
    item: Any,
    values: dict[str, Any],
    backbone: str,
    output: list[Path] | None = None,
) -> None:
    from pkgutil import resolve_name

    folder = results.folder / f"{item.kind}s" / (backbone if item.kind == "figure" else "")
    output = output or [folder / f"{item.name}{form}" for form in FORMS[item.kind]]
    resolve_name(WRITERS[item.kind])(item.maker()(results, **values), output)
