"""A table and its four forms: CSV, Markdown, LaTeX (booktabs) and HTML."""

import html
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from blocklora.errors import UserError
from blocklora.files import write_text

BEST, SECOND = "best", "second"

STYLE = """
body { font: 14px/1.5 system-ui, sans-serif; color: #222; margin: 1.5em; }
table { border-collapse: collapse; margin: 1em 0; border-top: 2px solid; border-bottom: 2px solid; }
caption { text-align: left; max-width: 60em; margin-bottom: .6em; }
th, td { padding: .2em .7em; text-align: right; vertical-align: top; white-space: nowrap; }
td.text { text-align: left; white-space: normal; min-width: 7.5em; }
thead th { border-bottom: 1px solid; vertical-align: bottom; white-space: normal; }
th.text, tr.section th { text-align: left; }
tr.section th { border-top: 1px solid; font-style: italic; font-weight: normal; }
.note { font-size: 12px; max-width: 75em; }
"""


@dataclass(frozen=True)
class Cell:
    """What stands in a table: plain text, and whether it is the best or second best of a column."""

    text: str
    mark: str = ""


@dataclass(frozen=True)
class Section:
    """Rows of a table under one heading (empty: no heading)."""

    title: str
    rows: list[list[Cell]]


@dataclass(frozen=True)
class Table:
    """A table to be published.

    Attributes:
        name: short name, the label in LaTeX.
        caption: a sentence that says what the table shows, and of which study.
        columns: headings.
        sections: its rows.
        data: the numbers behind it in full precision, tidy; the CSV form.
        notes: the meaning of the cells' marks, sources, missing runs.
        text_columns: the number of leading columns that hold words.
    """

    name: str
    caption: str
    columns: list[str]
    sections: list[Section]
    data: pd.DataFrame
    notes: list[str] = field(default_factory=list)
    text_columns: int = 1


def cells(*texts: str) -> list[Cell]:
    """Return a row of unmarked cells."""
    return [Cell(text) for text in texts]


def mark_best(values: list[float], digits: int = 1) -> list[str]:
    """Return the marks of a column: values that print alike share one, NaN gets none.

    A column with a single value has no best one.
    """
    rounded = [round(value, digits) for value in values]
    distinct = sorted({value for value in rounded if value == value}, reverse=True)
    if sum(value == value for value in rounded) < 2:
        return [""] * len(values)
    marks = dict(zip(distinct, (BEST, SECOND), strict=False))
    return [marks.get(value, "") for value in rounded]


def write_table(table: Table, outputs: list[Path]) -> None:
    """Write a table to each path, in the form its suffix names.

    Raises:
        UserError: a suffix is not .csv, .md, .tex or .html.
    """
    writers: dict[str, Callable[[Table], str]] = {
        ".csv": lambda table: frame_csv(table.data),
        ".md": to_markdown,
        ".tex": to_latex,
        ".html": to_html,
    }
    for path in outputs:
        if path.suffix not in writers:
            raise UserError(f"{path}: tables are written as {', '.join(writers)}")
    for path in outputs:
        write_text(path, writers[path.suffix](table))


def to_markdown(table: Table) -> str:
    """Return a table in GitHub's Markdown: caption, one grid per section, notes."""
    parts = [_escape_markdown(table.caption)]
    words = table.text_columns
    rules = [":--"] * words + ["--:"] * (len(table.columns) - words)
    for section in table.sections:
        if section.title:
            parts.append(f"**{_escape_markdown(section.title)}**")
        headings = [_escape_markdown(column) for column in table.columns]
        rows = [[_markdown_cell(cell) for cell in row] for row in section.rows]
        lines = [headings, rules, *rows]
        parts.append("\n".join("| " + " | ".join(line) + " |" for line in lines))
    parts += [_escape_markdown(note) for note in table.notes]
    return "\n\n".join(parts) + "\n"


def _markdown_cell(cell: Cell) -> str:
    text = _escape_markdown(cell.text)
    return {BEST: f"**{text}**", SECOND: f"<ins>{text}</ins>"}.get(cell.mark, text)


def _escape_markdown(text: str) -> str:
    return re.sub(r"([\\`*_|<>\[\]])", r"\\\1", text).replace("\n", " ")


def to_latex(table: Table) -> str:
    """Return a table environment that needs booktabs and graphicx.

    A table wider than the text is scaled down to it.
    """
    width = len(table.columns)
    alignment = "l" * table.text_columns + "r" * (width - table.text_columns)
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{escape_latex(table.caption)}}}",
        rf"\label{{tab:{re.sub(r'[^A-Za-z0-9-]', '-', table.name)}}}",
        r"\smallskip\footnotesize\setlength{\tabcolsep}{3pt}",
        r"\resizebox{\ifdim\width>\textwidth\textwidth\else\width\fi}{!}{%",
        rf"\begin{{tabular}}{{@{{}}{alignment}@{{}}}}",
        r"\toprule",
    ]
    lines.append(" & ".join(escape_latex(column) for column in table.columns) + r" \\")
    for section in table.sections:
        lines.append(r"\midrule")
        if section.title:
            title = escape_latex(section.title)
            lines.append(rf"\multicolumn{{{width}}}{{@{{}}l}}{{\emph{{{title}}}}} \\")
        lines += [" & ".join(_latex_cell(cell) for cell in row) + r" \\" for row in section.rows]
    lines += [r"\bottomrule", r"\end{tabular}}"]
    lines += [rf"\par\smallskip\raggedright {escape_latex(note)}" for note in table.notes]
    lines.append(r"\end{table}")
    return "\n".join(lines) + "\n"


def _latex_cell(cell: Cell) -> str:
    text = escape_latex(cell.text)
    text = re.sub(r"\s*\$\\pm\$\s*([0-9.]+)", r"{\\scriptsize$\\pm$\1}", text)
    return {BEST: rf"\textbf{{{text}}}", SECOND: rf"\underline{{{text}}}"}.get(cell.mark, text)


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


def to_html(table: Table) -> str:
    """Return a page of its own, without scripts and without anything to load."""
    title, caption = html.escape(table.name), html.escape(table.caption)
    lines = [
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{title}</title><style>{STYLE}</style></head>",
        f"<body>\n<table><caption>{caption}</caption><thead><tr>",
    ]
    for number, column in enumerate(table.columns):
        kind = ' class="text"' if number < table.text_columns else ""
        lines.append(f'<th scope="col"{kind}>{html.escape(column)}</th>')
    lines.append("</tr></thead><tbody>")
    for section in table.sections:
        if section.title:
            title = html.escape(section.title)
            width = len(table.columns)
            lines.append(f'<tr class="section"><th colspan="{width}">{title}</th></tr>')
        for row in section.rows:
            filled = (_html_cell(cell, n < table.text_columns) for n, cell in enumerate(row))
            lines.append("<tr>" + "".join(filled) + "</tr>")
    lines.append("</tbody></table>")
    lines += [f'<p class="note">{html.escape(note)}</p>' for note in table.notes]
    return "\n".join(lines) + "\n</body></html>\n"


def _html_cell(cell: Cell, is_text: bool) -> str:
    text = html.escape(cell.text)
    text = {BEST: f"<b>{text}</b>", SECOND: f"<u>{text}</u>"}.get(cell.mark, text)
    return f'<td class="text">{text}</td>' if is_text else f"<td>{text}</td>"


def frame_csv(frame: pd.DataFrame) -> str:
    """Return a frame as CSV; NaN is an empty field."""
    return frame.to_csv(index=False, lineterminator="\n")
