"""The few-shot table: methods × datasets with their average, for each shot count."""

from collections.abc import Iterable

import pandas as pd

from blocklora.errors import UserError
from blocklora.publish import formats
from blocklora.publish.accuracy import measured_cells, published_cells
from blocklora.publish.published import AVERAGE, dataset_label, published_backbone
from blocklora.publish.render import Cell, Section, Table, mark_best
from blocklora.publish.results import Results, caption_of

DATA_COLUMNS = [
    *("backbone", "shots", "method", "dataset", "accuracy_percent", "std", "low", "high"),
    *("seeds", "kind", "mark", "source"),
]


def fewshot_table(results: Results, shots: int | None = None, published: bool = False) -> Table:
    """Return the few-shot table of a study, for one shot count or all of them.

    The zero-shot rows stand in every section, for comparison. With `published`, published rows
    of the same backbone follow the measured ones; each says where it comes from.

    Raises:
        UserError: the study has no such shot count.
    """
    study = results.study
    if shots is not None and shots not in study.shots:
        raise UserError(
            f"{study.path}: has no {shots} shots, only {', '.join(map(str, study.shots))}"
        )
    counts = study.shots if shots is None else (shots,)
    cells = _at(measured_cells(results), counts)
    skipped: list[str] = []
    if published:
        for backbone in study.backbones:
            found = _at(published_cells(study, backbone), counts)
            shown, left_out = _tabulated(found, len(study.datasets))
            cells = pd.concat([cells, shown], ignore_index=True)
            skipped += left_out
    columns = [*study.datasets, AVERAGE]
    sources: dict[str, int] = {}
    sections, data = [], []
    for backbone in study.backbones:
        for count in counts:
            chosen = cells[(cells["backbone"] == backbone) & cells["shots"].isin([0, count])]
            rows, tidy = _section(chosen, columns, sources)
            sections.append(Section(_title(results, backbone, count), rows))
            data.append(tidy.assign(backbone=backbone, shots=count))
    return Table(
        name="fewshot" if shots is None else f"fewshot-{shots}shot",
        caption=_caption(results, shots, bool(sources)),
        columns=["method", "origin", *(dataset_label(dataset) for dataset in columns)],
        sections=sections,
        data=pd.concat(data, ignore_index=True)[DATA_COLUMNS],
        notes=_notes(results, shots, cells, sources, skipped),
        text_columns=2,
    )


def _at(cells: pd.DataFrame, counts: Iterable[int]) -> pd.DataFrame:
    return cells[cells["shots"].isin([0, *counts])]


def _tabulated(cells: pd.DataFrame, datasets: int) -> tuple[pd.DataFrame, list[str]]:
    """Split published cells into those to print and the labels of the methods left out.

    A row with a number on fewer than half of the datasets would be mostly dashes.
    """
    per_dataset = cells[cells["dataset"] != AVERAGE]
    known = per_dataset.groupby(["label", "shots"])["dataset"].transform("size")
    enough = per_dataset[2 * known >= datasets]
    keys = set(zip(enough["label"], enough["shots"], strict=True))
    keep = [key in keys for key in zip(cells["label"], cells["shots"], strict=True)]
    return cells[keep], sorted(set(cells["label"]) - {label for label, _ in keys})


def _section(
    cells: pd.DataFrame, columns: list[str], sources: dict[str, int]
) -> tuple[list[list[Cell]], pd.DataFrame]:
    """Return the rows of one section and the tidy numbers behind them."""
    measured = cells["kind"] == "measured"
    # Measured rows first, zero-shot before the others, the order of the file otherwise.
    ordered = cells.assign(published=~measured).sort_values(["published", "shots"], kind="stable")
    lines = {
        key: group.set_index("dataset").reindex(columns)
        for key, group in ordered.groupby(["published", "label"], sort=False)
    }
    marks = {
        dataset: mark_best([line.loc[dataset, "mean"] for line in lines.values()])
        for dataset in columns
    }
    rows, tidy = [], []
    for number, ((is_published, label), line) in enumerate(lines.items()):
        origin = _origin(line["source"].dropna(), sources) if is_published else "measured"
        row = [Cell(label), Cell(origin)]
        for dataset in columns:
            mark = marks[dataset][number]
            row.append(Cell(_text(line.loc[dataset]), mark))
            tidy.append({"method": label, "dataset": dataset, "mark": mark})
        rows.append(row)
    numbers = pd.concat(lines.values()).reset_index(drop=True)
    frame = pd.DataFrame(tidy).join(
        numbers[["mean", "std", "low", "high", "seeds", "kind", "source"]]
    )
    return rows, frame.rename(columns={"mean": "accuracy_percent"})


def _origin(found: Iterable[str], sources: dict[str, int]) -> str:
    numbers = [sources.setdefault(source, len(sources) + 1) for source in dict.fromkeys(found)]
    return "published " + ", ".join(f"[{number}]" for number in numbers)


def _text(cell: pd.Series) -> str:
    if isinstance(cell["text"], str) and cell["text"]:
        return cell["text"] + ("*" if cell["kind"] == "derived" else "")
    return formats.percent(cell["mean"], cell["std"], cell["seeds"], cell["expected_seeds"])


def _title(results: Results, backbone: str, shots: int) -> str:
    name = published_backbone(results.study, backbone) or backbone
    return f"{name}, {formats.shots(shots)} per class"


def _caption(results: Results, shots: int | None, published: bool) -> str:
    amount = "few-shot" if shots is None else f"{shots}-shot"
    text = (
        f"Test accuracy in percent of {amount} classification: mean ± standard deviation over "
        f"{len(results.study.seeds)} seeds. "
        "Best of each column in bold, second best underlined, compared at one decimal."
    )
    if published:
        text += " Rows marked published were not measured here."
    return caption_of(results.study, text)


def _notes(
    results: Results,
    shots: int | None,
    cells: pd.DataFrame,
    sources: dict[str, int],
    skipped: list[str],
) -> list[str]:
    notes = []
    measured = cells[cells["kind"] == "measured"]
    if len(results.study.seeds) == 1:
        notes.append("A single seed: its spread is unknown.")
    elif ((measured["seeds"] > 0) & (measured["seeds"] < measured["expected_seeds"])).any():
        notes.append("A number in brackets after a mean is the number of seeds it is over.")
    missing = [run for run in results.missing if shots is None or run.shots in (0, shots)]
    if missing:
        notes.append(results.missing_note(missing))
    if sources and (cells["kind"] == "derived").any():
        notes.append("* Derived: mean of the row's published values, over the study's datasets.")
    notes += [f"[{number}] {source}" for source, number in sources.items()]
    if skipped:
        listed = ", ".join(skipped)
        notes.append(f"Published on fewer than half of the datasets, hence left out: {listed}.")
    return notes
