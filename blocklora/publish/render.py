"""Tables, and how they are written as CSV, Markdown, LaTeX (booktabs) and HTML.

The last three are templates in `templates/`. None of them loads anything or runs a script.
"""

import html
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pandas as pd
from jinja2 import Environment, FileSystemLoader

from blocklora.errors import UserError
from blocklora.files import write_text

BEST, SECOND = "best", "second"


@dataclass(frozen=True)
class Cell:
    """The text of one cell, and its mark if it is the best or second best value of its column."""

    text: str
    mark: str = ""


@dataclass(frozen=True)
class Section:
    """Rows of a table under one heading; an empty title prints none."""

    title: str
    rows: list[list[Cell]]


@dataclass(frozen=True)
class Table:
    """A table to be published.

    Attributes:
        name: A short name of letters, digits and hyphens, which becomes the label in LaTeX.
        caption: A sentence that says what the table shows, and of which study.
        columns: The headings of the columns.
        sections: The rows.
        data: The numbers in full precision, one observation per row; they become the CSV file.
        notes: Sentences below the table: the meaning of marks, sources, missing runs.
        text_columns: The number of leading columns that hold words and are aligned left.
    """

    name: str
    caption: str
    columns: list[str]
    sections: list[Section]
    data: pd.DataFrame
    notes: list[str] = field(default_factory=list)
    text_columns: int = 1


def mark_best(values: pd.Series) -> pd.Series:
    """Return the mark of each value of a column, which are compared at one decimal.

    NaN gets no mark, and a column with a single value has no best one.
    """
    ranks = values.round(1).rank(method="dense", ascending=False)
    marks = {1: BEST, 2: SECOND} if values.count() > 1 else {}
    return ranks.map(marks).fillna("")


def write_table(table: Table, outputs: Sequence[Path]) -> None:
    """Write a table to each path, in the form that its suffix names."""
    write_forms("tables", outputs, dict.fromkeys((".csv", *FORMS), partial(write_form, table)))


def write_form(table: Table, path: Path) -> None:
    """Write a table to one path: .csv, .md, .tex or .html."""
    write_text(path, frame_csv(table.data) if path.suffix == ".csv" else render(table, path.suffix))


def write_forms(
    what: str, outputs: Sequence[Path], writers: Mapping[str, Callable[[Path], None]]
) -> None:
    """Call the writer of each output, which its suffix names.

    Raises:
        UserError: A suffix has no writer; then nothing is written.
    """
    for path in outputs:
        if path.suffix not in writers:
            raise UserError(f"{path}: {what} are written as {', '.join(writers)}")
    for path in outputs:
        writers[path.suffix](path)


def frame_csv(frame: pd.DataFrame) -> str:
    """Return a frame as CSV; NaN becomes an empty field."""
    return frame.to_csv(index=False, lineterminator="\n")


def escape_markdown(text: str) -> str:
    """Return text that GitHub's Markdown prints literally."""
    return re.sub(r"([\\`*_|<>\[\]])", r"\\\1", text).replace("\n", " ")


LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "[": "{[}",  # after a line break, a bare bracket is an argument
    "±": r"$\pm$",
    "−": r"$-$",
    "×": r"$\times$",
    "·": r"$\cdot$",
    "≤": r"$\le$",
    "≥": r"$\ge$",
    "σ": r"$\sigma$",
    "α": r"$\alpha$",
    "Δ": r"$\Delta$",
    "²": "$^2$",
    "√": r"$\surd$",
    "—": "---",
    "–": "--",
    "…": r"\dots{}",
    "\n": " ",
}


def escape_latex(text: str) -> str:
    """Return text that LaTeX prints as it stands."""
    return "".join(LATEX.get(character, character) for character in text)


# For each form: the function that escapes text, and how the best and second best value are set.
FORMS = {
    ".md": (escape_markdown, "**{}**", "<ins>{}</ins>"),
    ".tex": (escape_latex, r"\textbf{{{}}}", r"\underline{{{}}}"),
    ".html": (html.escape, "<b>{}</b>", "<u>{}</u>"),
}


def render(table: Table, suffix: str) -> str:
    """Return a table in the form that a suffix of `FORMS` names."""
    escape, best, second = FORMS[suffix]

    def cell(given: Cell) -> str:
        text = escape(given.text)
        if suffix == ".tex":
            text = re.sub(r"\s*\$\\pm\$\s*([0-9.]+)", r"{\\scriptsize$\\pm$\1}", text)
        return {BEST: best, SECOND: second}.get(given.mark, "{}").format(text)

    # Brackets as delimiters are not in the way of LaTeX's braces.
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("templates")),
        variable_start_string="[[",
        variable_end_string="]]",
        block_start_string="[%",
        block_end_string="%]",
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"e": escape, "cell": cell}
    template = environment.get_template(f"table{suffix}.j2")
    text = template.render(table=table, words=table.text_columns, width=len(table.columns))
    return text.rstrip() + "\n"
