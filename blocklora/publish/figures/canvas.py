"""What all figures share: style, sizes, how methods are told apart, and how files are written."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.style
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from blocklora.errors import UserError
from blocklora.files import atomic_path, write_text
from blocklora.publish.published import method_label
from blocklora.publish.render import escape_latex, frame_csv, write_forms
from blocklora.study.model import Study

STYLE_FILE = Path(__file__).parents[1] / "figure.mplstyle"
WIDTH = 6.25  # inches: within the text of an A4 page with margins of an inch
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)), (0, (8, 2)))
PUBLISHED_GREY = "#777777"

# It reports each font it embeds in a PDF, at the level of our own messages.
logging.getLogger("fontTools").setLevel(logging.WARNING)


@dataclass(frozen=True)
class Drawing:
    """A figure to be published: the picture, its caption and the numbers it shows."""

    name: str
    figure: Figure
    caption: str
    data: pd.DataFrame


@contextmanager
def style() -> Iterator[None]:
    """Draw with the style file and nothing of the user's own settings."""
    with matplotlib.style.context(["default", str(STYLE_FILE)]):
        yield


def choose_backbone(study: Study, backbone: str | None) -> str:
    """Return the backbone to draw.

    Raises:
        UserError: it is not one of the study's, or is not named although there are several.
    """
    known = list(study.backbones)
    if backbone is None and len(known) == 1:
        return known[0]
    if backbone not in known:
        raise UserError(f"{study.path}: name one backbone with --backbone: {', '.join(known)}")
    return backbone


@contextmanager
def panels(
    study: Study, height: float, rows: int = 1, columns: int = 1, **grid: Any
) -> Iterator[tuple[Figure, list[Axes]]]:
    """Yield a figure of the text width and its axes in reading order, to be drawn on.

    In the end, all panels get one legend below them, of what the first one shows. A picture of a
    miniature says that it is one, since pictures travel alone.

    Args:
        study: the study that is shown.
        height: in inches.
        rows: the number of rows of panels.
        columns: the number of columns of panels.
        grid: further arguments of `Figure.subplots`.
    """
    with style():
        figure = Figure(figsize=(WIDTH, height))
        axes = list(figure.subplots(rows, columns, squeeze=False, **grid).flat)
        yield figure, axes
        handles, labels = axes[0].get_legend_handles_labels()
        if handles:
            figure.legend(handles, labels, loc="outside lower center", ncols=4)
        if study.miniature is not None:
            figure.suptitle(
                "miniature study, not the paper's results",
                fontsize=6,
                color="#666666",
                x=0.995,
                ha="right",
            )


def looks(position: int) -> dict[str, object]:
    """Return colour, marker and dashes of the series at a position; no two of 7 share any."""
    colors = mpl.rcParams["axes.prop_cycle"].by_key()["color"]
    return {
        "color": colors[position % len(colors)],
        "marker": MARKERS[position % len(MARKERS)],
        "linestyle": DASHES[position % len(DASHES)],
    }


def draw_methods(
    axes: Axes,
    study: Study,
    rows: pd.DataFrame,
    along: str,
    fields: tuple[str, str, str],
    **further: Any,
) -> None:
    """Draw a curve for each method that has rows, and fill the band around it.

    Thin edges keep bands apart where they overlap, in grey too.

    Args:
        axes: the panel.
        study: the study of the methods.
        rows: the numbers, with a column for the name of the method.
        along: the column of the horizontal axis.
        fields: the columns of the curve, and of the lower and the upper edge of its band.
        further: further arguments of `Axes.plot` for the curves.

    Raises:
        UserError: there are more methods than looks.
    """
    if len(study.methods) > len(MARKERS):
        raise UserError(
            f"{study.path}: has {len(study.methods)} methods, a figure of curves tells "
            f"{len(MARKERS)} apart; the table and the figure called ablation show any number"
        )
    for position, method in enumerate(study.methods):
        line = rows[rows["method"] == method].sort_values(along)
        if line.empty:
            continue
        look = looks(position)
        at, (middle, low, high) = line[along], (line[field] for field in fields)
        if method == study.zero_shot:
            look["linestyle"] = "none"
        axes.plot(at, middle, label=method_label(method), **look | further)
        axes.fill_between(at, low, high, color=look["color"], alpha=0.13, linewidth=0)
        for edge in (low, high):
            axes.plot(at, edge, color=look["color"], alpha=0.6, linewidth=0.4)


def write_drawing(drawing: Drawing, outputs: list[Path]) -> None:
    """Write a figure to each path: .pdf, .png, .csv (its numbers) or .tex (a figure environment).

    Raises:
        UserError: a suffix is none of these.
    """
    save = partial(_save, drawing)
    writers = {
        ".pdf": save,
        ".png": save,
        ".csv": lambda path: write_text(path, frame_csv(drawing.data)),
        ".tex": lambda path: write_text(path, _figure_environment(drawing, path.stem)),
    }
    write_forms("figures", outputs, writers)


def _save(drawing: Drawing, path: Path) -> None:
    """Save without a date, so that equal figures are equal files."""
    if path.suffix == ".pdf":
        metadata = {
            "CreationDate": None,
            "Producer": None,
            "Creator": "blocklora",
            "Title": drawing.name,
            "Subject": drawing.caption,
        }
    else:
        metadata = {"Software": None, "Title": drawing.name, "Description": drawing.caption}
    image = BytesIO()  # what writes PDF cannot end on a full disk
    with style():
        drawing.figure.savefig(image, format=path.suffix[1:], metadata=metadata)
    with atomic_path(path) as temporary:
        temporary.write_bytes(image.getvalue())


def _figure_environment(drawing: Drawing, stem: str) -> str:
    return rf"""\begin{{figure}}
\centering
\includegraphics{{{stem}.pdf}}
\caption{{{escape_latex(drawing.caption)}}}
\label{{fig:{drawing.name}}}
\end{{figure}}
"""
