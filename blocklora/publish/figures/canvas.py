"""The style and the size of all figures, the looks of methods, and the writing of files."""

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
from blocklora.publish.published_accuracies import method_label
from blocklora.publish.render import escape_latex, frame_csv, write_forms
from blocklora.study.study import Study

STYLE_FILE = Path(__file__).parents[1] / "figure.mplstyle"
WIDTH = 6.25  # inches, which fits the text of an A4 page with margins of an inch
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)), (0, (8, 2)))

# fontTools logs every font that it embeds in a PDF, at the level of our own messages.
logging.getLogger("fontTools").setLevel(logging.WARNING)


@dataclass(frozen=True)
class Drawing:
    """A figure to be published: the picture, its caption and the numbers that it shows."""

    name: str
    figure: Figure
    caption: str
    data: pd.DataFrame


@contextmanager
def style() -> Iterator[None]:
    """Draw with our style file, whatever settings the user has."""
    with matplotlib.style.context(["default", str(STYLE_FILE)]):
        yield


def choose_backbone(study: Study, backbone: str | None) -> str:
    """Return the backbone to draw: the one that is named, or the study's only one.

    Raises:
        UserError: The study does not have this backbone, or has several and none is named.
    """
    known = list(study.backbones)
    if backbone is None and len(known) > 1:
        raise UserError(f"{study.path}: name one backbone with --backbone: {', '.join(known)}")
    chosen = known[0] if backbone is None else backbone
    if chosen not in known:
        raise UserError(f"{study.path}: has no backbone {chosen}, only {', '.join(known)}")
    return chosen


@contextmanager
def panels(
    study: Study, height: float, rows: int, columns: int, **grid: Any
) -> Iterator[tuple[Figure, list[Axes]]]:
    """Yield a figure as wide as the text, and its axes in reading order, to be drawn on.

    Afterwards the figure gets the legend of its first panel. The picture of a miniature study says
    that it is one, because pictures are often shown without their captions.

    Args:
        study: The study that is shown.
        height: The height of the figure in inches.
        rows: The number of rows of panels.
        columns: The number of columns of panels.
        grid: Further arguments of `Figure.subplots`.
    """
    with style():
        figure = Figure(figsize=(WIDTH, height))
        axes = list(figure.subplots(rows, columns, squeeze=False, **grid).flat)
        yield figure, axes
        handles, labels = axes[0].get_legend_handles_labels()
        if handles:
            figure.legend(handles, labels, loc="outside lower center", ncols=4)
        if study.miniature is not None:
            text = "miniature study, not the paper's results"
            figure.suptitle(text, fontsize=6, color="#666666", x=0.995, ha="right")


def looks(position: int) -> dict[str, object]:
    """Return the colour, marker and dashes of a series; the first 7 series differ in all three.

    The colours are those of the style in force, so this is called within `style`.
    """
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
    """Draw a curve with a band around it for each method that has rows.

    The bands have thin edges, so that they can be told apart where they overlap, even in grey.

    Args:
        axes: The panel.
        study: The study, which decides the order and the looks of the methods.
        rows: The numbers, with the name of the method in the column "method".
        along: The column of the horizontal axis.
        fields: The columns of the curve and of the lower and upper edge of its band.
        further: Further arguments of `Axes.plot` for the curves.

    Raises:
        UserError: There are more methods than looks.
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
        at, middle, low, high = (line[name].astype(float) for name in (along, *fields))
        if method == study.zero_shot:
            look["linestyle"] = "none"
        axes.plot(at, middle, label=method_label(method), **look | further)
        axes.fill_between(at, low, high, color=look["color"], alpha=0.13, linewidth=0)
        for edge in (low, high):
            axes.plot(at, edge, color=look["color"], alpha=0.6, linewidth=0.4)


def write_drawing(drawing: Drawing, outputs: list[Path]) -> None:
    """Write a figure to each path: .pdf, .png, .csv (its numbers) or .tex (a figure environment).

    Raises:
        UserError: A suffix is none of these, or a file cannot be written.
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
    """Save the picture without date and version, so that equal figures are equal files."""
    metadata = {
        ".pdf": {
            "CreationDate": None,
            "Producer": None,
            "Creator": "blocklora",
            "Title": drawing.name,
            "Subject": drawing.caption,
        },
        ".png": {"Software": None, "Title": drawing.name, "Description": drawing.caption},
    }[path.suffix]
    image = BytesIO()  # because matplotlib cannot close a PDF file on a full disk
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
