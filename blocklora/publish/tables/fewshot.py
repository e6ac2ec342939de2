"""The few-shot table: a row per method and a column per dataset, for each shot count."""

from collections.abc import Iterable
from dataclasses import replace

import pandas as pd

from blocklora.errors import UserError
from blocklora.publish import formats
from blocklora.publish.cells import all_published_cells, measured_cells
from blocklora.publish.description import Across, Description
from blocklora.publish.published_accuracies import AVERAGE, dataset_label, published_backbone
from blocklora.publish.render import Table, mark_best
from blocklora.publish.results import Results

DATA_COLUMNS = [
    *("backbone", "shots", "method", "dataset", "accuracy_percent", "std", "low", "high"),
    *("seeds", "kind", "mark", "source"),
]


def _accuracy(mean: float, std: float, seeds: int, expected: int, text: str, kind: str) -> str:
    if text:
        return f"{text}*" if kind == "derived" else text
    return formats.percent(mean, std, seeds, expected)


FEWSHOT = Description(
    name="fewshot",
    caption="Test accuracy in percent of {kind} classification: mean ± standard deviation over "
    "{seeds} seeds. Best of each column in bold, second best underlined, compared at one decimal.",
    columns=[("method", "method", str), ("origin", "origin", str)],
    across=Across(
        key="dataset",
        heading=dataset_label,
        fields="accuracy_percent std seeds expected_seeds text kind",
        show=_accuracy,
        marks="mark",
    ),
    text_columns=2,
)


def fewshot_table(results: Results, shots: int | None = None, published: bool = False) -> Table:
    """Return the few-shot table of a study, for one shot count or for all of them.

    Each section repeats the zero-shot rows for comparison. With `published`, the published rows of
    the same backbone follow the measured ones, and each of them cites its source.

    Raises:
        UserError: The study has no such shot count.
    """
    study = results.study
    if shots is not None and shots not in study.shots:
        raise UserError(
            f"{study.path}: has no {shots} shots, only {', '.join(map(str, study.shots))}"
        )
    counts = study.shots if shots is None else (shots,)
    cells, skipped = _at(measured_cells(results), counts), []
    if published:
        shown, skipped = _tabulated(_at(all_published_cells(study), counts), len(study.datasets))
        if len(shown):  # an empty frame would make the seeds floats
            cells = pd.concat([cells, shown], ignore_index=True)
    sources: dict[str, int] = {}
    frame = pd.concat(
        [
            _section(
                cells[cells["backbone"] == backbone], count, [*study.datasets, AVERAGE], sources
            )
            for backbone in study.backbones
            for count in counts
        ],
        ignore_index=True,
    )
    caption = FEWSHOT.caption.format(
        kind="few-shot" if shots is None else f"{shots}-shot", seeds=len(study.seeds)
    )
    if sources:
        caption += " Rows marked published were not measured here."
    name = "fewshot" if shots is None else f"fewshot-{shots}shot"
    return replace(FEWSHOT, name=name, caption=caption).table(
        study,
        frame[DATA_COLUMNS],
        by=("backbone", "shots"),
        title=lambda backbone, count: (
            f"{published_backbone(study, backbone) or backbone}, {formats.shots(count)} per class"
        ),
        shown=frame,
        across=[*study.datasets, AVERAGE],
        notes=_notes(results, shots, cells, sources, skipped),
    )


def _at(cells: pd.DataFrame, counts: Iterable[int]) -> pd.DataFrame:
    return cells[cells["shots"].isin([0, *counts])]


def _tabulated(cells: pd.DataFrame, datasets: int) -> tuple[pd.DataFrame, list[str]]:
    """Return the published cells to print, and the labels of the methods without any.

    A row with numbers for fewer than half of the datasets would be mostly dashes and is left out.
    """
    row = ["backbone", "label", "shots"]
    known = (cells["dataset"] != AVERAGE).groupby([cells[key] for key in row]).transform("sum")
    shown = cells[2 * known >= datasets]
    return shown, sorted(set(cells["label"]) - set(shown["label"]))


def _section(
    cells: pd.DataFrame, shots: int, datasets: list[str], sources: dict[str, int]
) -> pd.DataFrame:
    """Return the cells of one section in order, with marks and the origins of their rows.

    Each row has a cell for every dataset, which is NaN if the accuracy is unknown.

    Args:
        cells: The cells of one backbone.
        shots: The shot count of the section.
        datasets: The datasets of its columns, with the average.
        sources: The number of each source that is cited so far; new ones are added.
    """
    chosen = _at(cells, [shots])
    # Measured rows come first, and zero-shot before the others. Apart from that, the order is kept.
    chosen = chosen.assign(published=chosen["kind"] != "measured")
    lines = []
    ordered = chosen.sort_values(["published", "shots"], kind="stable")
    for (published, label), line in ordered.groupby(["published", "label"], sort=False):
        full = line.set_index("dataset").reindex(datasets).reset_index()
        origin = "measured"
        if published:
            cited = full["source"].dropna().unique()
            numbers = [sources.setdefault(source, len(sources) + 1) for source in cited]
            origin = "published " + ", ".join(f"[{number}]" for number in numbers)
        lines.append(full.assign(method=label, origin=origin))
    frame = pd.concat(lines, ignore_index=True).rename(columns={"mean": "accuracy_percent"})
    marks = frame.groupby("dataset")["accuracy_percent"].transform(mark_best)
    return frame.assign(backbone=cells["backbone"].iloc[0], shots=shots, mark=marks)


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
        notes.append("There is a single seed, so the spread over seeds is unknown.")
    elif ((measured["seeds"] > 0) & (measured["seeds"] < measured["expected_seeds"])).any():
        notes.append("A number in brackets after a mean is the number of seeds behind it.")
    missing = [run for run in results.missing if shots is None or run.shots in (0, shots)]
    if missing:
        notes.append(results.missing_note(missing))
    if sources and (cells["kind"] == "derived").any():
        notes.append("* Derived: the mean of the row's published values over the study's datasets.")
    notes += [f"[{number}] {source}" for source, number in sources.items()]
    if skipped:
        listed = ", ".join(skipped)
        notes.append(f"Published on fewer than half of the datasets, hence left out: {listed}.")
    return notes
