import csv
import io
import re
from html.parser import HTMLParser
from math import nan

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blocklora.errors import UserError
from blocklora.publish import formats
from blocklora.publish.render import (
    Cell,
    Section,
    Table,
    escape_latex,
    mark_best,
    render,
    write_table,
)
from tests.publish.latex import compile_latex

NASTY = 'a_b & 50% of $x$ #1 {braces} ~^ \\end{table} <tag> [1] | *star* `code` "q" ± − — × σ'
TABLE = Table(
    name="made-up",
    caption=f"Caption: {NASTY}",
    columns=["method", "first_column", "second"],
    sections=[
        Section("One & only", [[Cell("LoRA"), Cell("81.2 ± 0.4", "best"), Cell("—")]]),
        Section("", [[Cell(text) for text in ("[3] Block_LoRA", "79.0", NASTY)]]),
    ],
    data=pd.DataFrame({"method": ["LoRA"], "value": [0.123456789], "std": [nan]}),
    notes=["Note with 100%."],
)


class Text(HTMLParser):
    """Collects the text of each element of an HTML page."""

    def __init__(self):
        super().__init__()
        self.open, self.cells = [], []

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "br"):
            self.open.append(tag)
        if tag in ("td", "th", "caption", "p"):
            self.cells.append((tag, ""))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.cells and self.open and self.open[-1] not in ("style", "title"):
            tag, text = self.cells[-1]
            self.cells[-1] = (tag, text + data)


def html_cells(page):
    parser = Text()
    parser.feed(page)
    assert not parser.open
    return [(tag, text.strip()) for tag, text in parser.cells]


def test_html_shows_every_text_as_it_is():
    found = html_cells(render(TABLE, ".html"))
    assert ("caption", f"Caption: {NASTY}") in found
    data = [text for tag, text in found if tag == "td"]
    assert data == ["LoRA", "81.2 ± 0.4", "—", "[3] Block_LoRA", "79.0", NASTY]
    assert [text for tag, text in found if tag == "th"][:3] == TABLE.columns


def test_html_loads_nothing_and_runs_nothing():
    page = render(TABLE, ".html")
    assert not re.search(r"<(script|link|img|iframe)|https?:|@import", page)


def test_csv_keeps_full_precision(tmp_path):
    write_table(TABLE, [tmp_path / "table.csv"])
    rows = list(csv.DictReader(io.StringIO((tmp_path / "table.csv").read_text())))
    assert rows == [{"method": "LoRA", "value": "0.123456789", "std": ""}]


def test_markdown_has_one_grid_per_section_with_equal_columns():
    text = render(TABLE, ".md")
    grids = [block for block in text.split("\n\n") if block.startswith("| ")]
    assert len(grids) == 2
    for grid in grids:
        assert {len(re.findall(r"(?<!\\)\|", line)) for line in grid.splitlines()} == {4}
    assert "| **81.2 ± 0.4** |" in text


def test_latex_has_as_many_cells_in_every_row_as_columns():
    text = render(TABLE, ".tex")
    body = text.split(r"\toprule")[1].split(r"\bottomrule")[0]
    rows = [line for line in body.splitlines() if line.endswith(r"\\")]
    full = [row for row in rows if not row.startswith(r"\multicolumn")]
    assert len(rows) == 4
    assert {len(re.findall(r"(?<!\\)&", row)) for row in full} == {2}
    assert text.count("{") - text.count(r"\{") == text.count("}") - text.count(r"\}")
    assert r"\textbf{81.2{\scriptsize$\pm$0.4}}" in text


def test_latex_compiles_within_the_width_of_the_page(tmp_path):
    wide = Table(
        "wide",
        "A wide one.",
        [str(number) for number in range(20)],
        [Section("All", [[Cell("70.0 ± 0.4")] * 20])],
        pd.DataFrame(),
        text_columns=2,
    )
    said = compile_latex(tmp_path, render(TABLE, ".tex") + render(wide, ".tex"))
    assert "Overfull" not in said


@given(st.text(alphabet=st.characters(codec="ascii", exclude_categories=["Cc"])))
def test_escaped_latex_has_no_bare_special_character(text):
    escaped = escape_latex(text)
    for command in (
        r"\textbackslash{}", r"\textasciitilde{}", r"\textasciicircum{}",
        r"\textless{}", r"\textgreater{}", "{[}",
    ):  # fmt: skip
        escaped = escaped.replace(command, "")
    assert not re.search(r"(?<!\\)[&%$#_{}~^]", escaped)


def test_an_unknown_suffix_writes_nothing(tmp_path):
    with pytest.raises(UserError, match=r"table\.docx: tables are written as"):
        write_table(TABLE, [tmp_path / "table.md", tmp_path / "table.docx"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("values", "marks"),
    [
        ([80.0, 81.0, 79.0], ["second", "best", ""]),
        ([80.04, 80.0, 79.0], ["best", "best", "second"]),  # both print as 80.0
        ([80.0, nan, 79.0], ["best", "", "second"]),
        ([80.0, 80.0, 80.0], ["best", "best", "best"]),
        ([80.0], [""]),
        ([80.0, nan], ["", ""]),
        ([nan, nan], ["", ""]),
        ([], []),
    ],
)
def test_marks_of_a_column(values, marks):
    assert mark_best(pd.Series(values, dtype=float)).tolist() == marks


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (formats.percent(81.25, 0.44, 3, 3), "81.2 ± 0.4"),
        (formats.percent(81.2, nan, 1, 1), "81.2"),
        (formats.percent(81.2, 0.4, 2, 3), "81.2 ± 0.4 (2)"),
        (formats.cell(formats.percent, nan, nan, 0, 3), "—"),
        (formats.cell(formats.percent, 81.2), "81.2"),
        (formats.cell(str, "a word"), "a word"),
        (formats.signed(-0.312), "−0.31"),
        (formats.signed(0.004), "0.00"),
        (formats.signed(-0.0), "0.00"),
        (formats.signed(1.5, 1), "+1.5"),
        (formats.interval(-0.5, 0.25), "[−0.50, +0.25]"),
        (formats.cell(formats.interval, nan, nan), "—"),
        (formats.p_value(0.0004), "< 0.001"),
        (formats.p_value(0.0312), "0.031"),
        (formats.number(0), "0"),
        (formats.number(1234567), "1,230,000"),
        (formats.number(0.000_001_2), "1.20e−06"),
        (formats.number(-0.5), "−0.500"),
        (formats.number(9.999), "10.0"),
        (formats.number(99.96), "100"),
        (formats.count(184320), "184,320"),
        (formats.size(999), "999 B"),
        (formats.size(737_280), "737 kB"),
        (formats.size(23.96e9), "24.0 GB"),
        (formats.duration(0.016), "16.0 ms"),
        (formats.duration(90), "90.0 s"),
        (formats.duration(3000), "50.0 min"),
        (formats.duration(36000), "10.0 h"),
        (formats.energy(1500), "1,500 J"),
        (formats.energy(54_000), "15.0 Wh"),
        (formats.energy(4.5e6), "1.25 kWh"),
        (formats.span(0.98, 1.02), "0.980 to 1.02"),
        (formats.span(1.0001, 1.0002), "1.00"),
    ],
)
def test_numbers_are_printed_for_people(shown, expected):
    assert shown == expected
