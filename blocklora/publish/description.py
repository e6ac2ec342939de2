"""Descriptions of tables as data: the summary of their rows, and the fields of their columns."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from blocklora.publish import formats
from blocklora.publish.render import Cell, Section, Table
from blocklora.publish.results import caption_of
from blocklora.study.study import Study

Column = tuple[str, str, Callable[..., str]]
"""A heading, names of fields separated by spaces, and the function that prints their values.

A cell is a dash if its first field is NaN.
"""


@dataclass(frozen=True)
class Across:
    """Columns to the right of the others, one for each value of a field.

    Attributes:
        key: The field whose values have columns of their own.
        heading: Prints a value of this field as a heading.
        fields: The names of the fields of a cell, separated by spaces.
        show: Prints these fields. A cell is a dash if its first field is NaN.
        marks: The field with the mark of a cell; empty if there is none.
    """

    key: str
    heading: Callable[[Any], str]
    fields: str
    show: Callable[..., str]
    marks: str = ""


@dataclass(frozen=True)
class Description:
    """A table that prints the rows of a frame.

    Attributes:
        name: The name of the table.
        caption: A sentence that says what the table shows.
        columns: The columns on the left, or all of them if `across` is None.
        across: Further columns, one for each value of a field. A row of the table then stands for
            all rows of the frame that agree in the fields of `columns`.
        keys: The fields that `summary` groups rows by.
        aggregate: The fields that summarise a group, in the form that `DataFrame.agg` takes.
        notes: Sentences below the table.
        text_columns: The number of leading columns that hold words.
    """

    name: str
    caption: str
    columns: Sequence[Column]
    across: Across | None = None
    keys: Sequence[str] = ()
    aggregate: Mapping[str, tuple[str, str | Callable]] = field(default_factory=dict)
    notes: Sequence[str] = ()
    text_columns: int = 1

    def summary(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Return one row for each group of rows, in the order in which the groups first appear."""
        return rows.groupby(list(self.keys), sort=False).agg(**self.aggregate).reset_index()

    def table(
        self,
        study: Study,
        frame: pd.DataFrame,
        by: Sequence[str] = ("backbone",),
        title: Callable[..., str] = str,
        shown: pd.DataFrame | None = None,
        across: Sequence[Any] = (),
        notes: Iterable[str | None] = (),
    ) -> Table:
        """Return the table of a frame.

        Args:
            study: The study that the caption names.
            frame: All numbers, which become the CSV form.
            by: The fields that divide the table into sections.
            title: Returns the title of a section, given its values of these fields.
            shown: The rows that the other forms print, `frame` by default.
            across: The values that have columns of their own.
            notes: Further notes; None is left out.
        """
        groups = (frame if shown is None else shown).groupby(list(by), sort=False)
        headings = [heading for heading, _, _ in self.columns]
        return Table(
            name=self.name,
            caption=caption_of(study, self.caption),
            columns=[*headings, *(self.across.heading(value) for value in across)],
            sections=[Section(title(*key), self._rows(group, across)) for key, group in groups],
            data=frame,
            notes=[note for note in (*self.notes, *notes) if note],
            text_columns=self.text_columns,
        )

    def _rows(self, group: pd.DataFrame, across: Sequence[Any]) -> list[list[Cell]]:
        if self.across is None:
            return self._left(group)
        names = [name for _, fields, _ in self.columns for name in fields.split()]
        rows = []
        for _, line in group.groupby(names, sort=False, dropna=False):
            right = line.set_index(self.across.key).reindex(across)
            texts = _printed(right, self.across.fields, self.across.show)
            marks = right[self.across.marks].fillna("") if self.across.marks else [""] * len(texts)
            rows.append([*self._left(line[:1])[0], *map(Cell, texts, marks)])
        return rows

    def _left(self, rows: pd.DataFrame) -> list[list[Cell]]:
        printed = [_printed(rows, fields, show) for _, fields, show in self.columns]
        return [[Cell(text) for text in texts] for texts in zip(*printed, strict=True)]


def _printed(rows: pd.DataFrame, fields: str, show: Callable[..., str]) -> list[str]:
    columns = (rows[name] for name in fields.split())
    return [formats.cell(show, *values) for values in zip(*columns, strict=True)]
