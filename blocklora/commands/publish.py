"""Commands that collect runs and publish tables, figures and verdicts on claims."""

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from blocklora.commands import options
from blocklora.errors import UserError

if TYPE_CHECKING:
    from blocklora.publish.catalogue import Item
    from blocklora.publish.results import Results

# The forms in which the workflow publishes a study.
FORMS = {
    "table": (".csv", ".md", ".tex", ".html"),
    "figure": (".pdf", ".csv", ".png"),
    "claims": (".json", ".csv", ".md", ".html"),
}


def _names(kind: str) -> list[tuple[str, str]]:
    """Return the names of all tables or figures, each with its section and its options."""
    from blocklora.experiments import entries

    return [
        (item.entry, " ".join([item.section, *(f"--{option}" for option in item.options)]))
        for item in entries()
        if item.kind == kind
    ]


def aggregate(
    *,
    study: options.Study,
    results: options.Results = None,
    partial: bool = False,
    output: Path | None = None,
) -> None:
    """Collect the runs of a study in one CSV file.

    It has a row for each run, made from the record of its fit and from its predictions.

    Args:
        partial: Go on although runs of the study are missing.
        output: File to write (default: runs.csv in --results).

    Examples:
        blocklora aggregate --study mini
        blocklora aggregate --study paper --partial
    """
    from blocklora.runs.aggregate import aggregate
    from blocklora.study import places

    chosen = options.open_study(study)
    folder = options.results_of(chosen, results)
    aggregate(chosen.path, folder / places.RUNS, output or folder / "runs.csv", partial)


def table(
    name: Annotated[str, typer.Argument(autocompletion=lambda: _names("table"))],
    *,
    study: options.Study,
    results: options.Results = None,
    shots: options.Shots = None,
    published: bool = False,
    output: options.Outputs = None,
) -> None:
    """Write a table of a study.

    The suffix of an output is one of .csv, .md, .tex and .html.

    Args:
        name: The table, see below.
        published: Show numbers published by others as well.

    Examples:
        blocklora table fewshot --study mini --shots 4
        blocklora table cost --study mini --output cost.md cost.tex
    """
    _make("table", name, study, results, output, shots=shots, published=published)


def figure(
    name: Annotated[str, typer.Argument(autocompletion=lambda: _names("figure"))],
    *,
    study: options.Study,
    results: options.Results = None,
    backbone: str | None = None,
    published: bool = False,
    output: options.Outputs = None,
) -> None:
    """Draw a figure of a study.

    The suffix of an output is one of .pdf, .png, .csv (the numbers) and .tex (with a caption).

    Args:
        name: The figure, see below.
        backbone: Name of the backbone, if the study has several.
        published: Show numbers published by others as well.

    Examples:
        blocklora figure accuracy --study mini
        blocklora figure cost --study mini --output cost.pdf cost.png
    """
    _make("figure", name, study, results, output, backbone=backbone, published=published)


def publish(
    what: Literal["tables", "figures"],
    *,
    study: options.Study,
    results: options.Results = None,
) -> None:
    """Write all tables of a study, or draw all its figures.

    Args:
        what: What to make.

    Examples:
        blocklora publish tables --study mini
    """
    from blocklora.experiments import items

    found = _results(study, results)
    wanted = [item for item in items(found.study) if f"{item.kind}s" == what]
    backbones = found.study.backbones if what == "figures" else [None]
    for backbone, item in product(backbones, wanted):
        made = item.maker()(found, **item.values(backbone))
        _write(item.kind, made, _places(found, item, backbone))


def claims(
    *, study: options.Study, results: options.Results = None, output: options.Outputs = None
) -> None:
    """Give the verdict on each claim of the papers.

    A claim is "not tested here" if the study cannot decide it, or if the files that it is decided
    by are missing. The suffix of an output is one of .json, .csv, .md and .html.

    Examples:
        blocklora claims --study mini
        blocklora claims --study mini --output claims.md claims.json
    """
    from blocklora.publish.claims import judge, load_claims
    from blocklora.publish.verdicts import write_verdicts

    found = _results(study, results)
    output = output or [found.folder / f"claims{form}" for form in FORMS["claims"]]
    write_verdicts(found.study, judge(load_claims(), found), output)


def _results(study: str, results: Path | None) -> "Results":
    from blocklora.publish.results import load_results

    chosen = options.open_study(study)
    return load_results(chosen.path, options.results_of(chosen, results))


def _make(
    kind: str, name: str, study: str, results: Path | None, output: list[Path] | None, **given: Any
) -> None:
    """Make a table or a figure and write it to `output`, or where the workflow puts it.

    Raises:
        UserError: There is none of this name, it does not take a given option, or a file that it
            is made from is missing or wrong.
    """
    from blocklora.experiments import entries

    known = {item.entry: item for item in entries() if item.kind == kind}
    options.check_name(kind, name, known)
    item = known[name]
    for option, value in given.items():
        if value and option not in item.options:
            raise UserError(f"{kind} {name} does not take --{option}")
    found = _results(study, results)
    made = item.maker()(found, **{option: given[option] for option in item.options})
    item, backbone = replace(item, shots=given.get("shots")), given.get("backbone")
    backbone = backbone or next(iter(found.study.backbones))
    _write(kind, made, output or _places(found, item, backbone))


def _places(results: "Results", item: "Item", backbone: str | None) -> list[Path]:
    """Return the files of a table, or of a figure of a backbone, as the workflow names them."""
    folder = results.folder / f"{item.kind}s"
    if item.kind == "figure":
        folder /= backbone
    return [folder / f"{item.name}{form}" for form in FORMS[item.kind]]


def _write(kind: str, made: Any, output: list[Path]) -> None:
    if kind == "table":
        from blocklora.publish.render import write_table

        write_table(made, output)
    else:
        from blocklora.publish.figures.canvas import write_drawing

        write_drawing(made, output)
