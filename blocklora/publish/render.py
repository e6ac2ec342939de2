"""Tables, and the functions that write them as CSV, Markdown, LaTeX (booktabs) and HTML.

The last three forms have templates in `templates/`. The HTML page loads no other file and runs no
script.
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
    """The text of one cell, and its mark: `BEST` or `SECOND` of its column, or no text."""

    text: str
    mark: str = ""


@dataclass(frozen=True)
class Section:
    """Rows of a table under one heading, which is left out if the title is empty."""

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
    """Return the mark of each value of a column, after rounding the values to one decimal.

    NaN gets no mark, and a column with a single value has no best one.
    """
    ranks = values.round(1).rank(method="dense", ascending=False)
    marks = {1: BEST, 2: SECOND} if values.count() > 1 else {}
    return ranks.map(marks).fillna("")


def write_table(table: Table, outputs: Sequence[Path]) -> None:
    """Write a table to each path, in the form that its suffix names.

    Raises:
        UserError: A suffix is not .csv, .md, .tex or .html.
    """
    write_forms("tables", outputs, dict.fromkeys((".csv", *FORMS), partial(write_form, table)))


def write_form(table: Table, path: Path) -> None:
    """Write a table to one path: .csv, .md, .tex or .html."""
    write_text(path, frame_csv(table.data) if path.suffix == ".csv" else render(table, path.suffix))


def write_forms(
    what: str, outputs: Sequence[Path], writers: Mapping[str, Callable[[Path], None]]
) -> None:
    """Call the writer of each output.

    Args:
        what: The kind of the outputs in the plural, for the error message.
        outputs: The paths to write.
        writers: The function that writes a path, for each suffix.

    Raises:
        UserError: A suffix has no writer. In this case, nothing is written.
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
    """Return a text escaped so that GitHub's Markdown prints it literally, on one line."""
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
    "[": "{[}",  # after a line break, a bare bracket would be its argument
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
    """Return a text escaped so that LaTeX prints it literally."""
    return "".join(LATEX.get(character, character) for character in text)


# For each form, the function that escapes text, and the formats of the best and second best value.
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

    # The delimiters are brackets, because braces belong to the syntax of LaTeX.
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
