"""Tables as descriptions: what is summarised over what, and which column shows what how."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd

from blocklora.publish.render import Section, Table, cells
from blocklora.publish.results import caption_of
from blocklora.study.model import Study


@dataclass(frozen=True)
class Description:
    """A table with a row for each row of a frame.

    Attributes:
        name: the name of the table.
        caption: a phrase that says what the table shows.
        columns: heading, names of the fields of the frame (words), and the function that prints
            their values.
        keys: the columns that the rows of a file are grouped by.
        aggregate: the fields that summarise a group, as `DataFrame.agg` takes them.
        notes: the sentences below the table.
        text_columns: the number of leading columns that hold words.
    """

    name: str
    caption: str
    columns: Sequence[tuple[str, str, Callable[..., str]]]
    keys: Sequence[str] = ()
    aggregate: Mapping[str, tuple[str, str | Callable]] = field(default_factory=dict)
    notes: Sequence[str] = ()
    text_columns: int = 1

    def summary(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Return the rows of a file summarised, a row for each group in the file's order."""
        return rows.groupby(list(self.keys), sort=False).agg(**self.aggregate).reset_index()

    def table(
        self,
        study: Study,
        frame: pd.DataFrame,
        by: Sequence[str] = ("backbone",),
        title: Callable[..., str] = str,
        shown: pd.DataFrame | None = None,
        notes: Iterable[str | None] = (),
    ) -> Table:
        """Return the table of a frame.

        Args:
            study: the study that the caption names.
            frame: the numbers, all of which are in the CSV form.
            by: the fields of which each combination of values has a section.
            title: returns the title of a section from these values.
            shown: the rows of the other forms, those of `frame` by default.
            notes: further ones; None is left out.
        """
        groups = (frame if shown is None else shown).groupby(list(by), sort=False)
        return Table(
            name=self.name,
            caption=caption_of(study, self.caption),
            columns=[heading for heading, _, _ in self.columns],
            sections=[Section(title(*key), self._rows(group)) for key, group in groups],
            data=frame,
            notes=[note for note in (*self.notes, *notes) if note],
            text_columns=self.text_columns,
        )

    def _rows(self, group: pd.DataFrame) -> list[list]:
        printed = [
            [show(*values) for values in zip(*(group[name] for name in names.split()), strict=True)]
            for _, names, show in self.columns
        ]
        return [cells(*row) for row in zip(*printed, strict=True)]
