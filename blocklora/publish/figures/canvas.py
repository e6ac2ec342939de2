"""What all figures share: style, sizes, how methods are told apart, and how files are written."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
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
from blocklora.publish.render import escape_latex, frame_csv
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


def new_figure(
    height: float, rows: int = 1, columns: int = 1, **grid: Any
) -> tuple[Figure, list[Axes]]:
    """Return a figure of the text width and its axes in reading order.

    Args:
        height: in inches.
        rows: the number of rows of panels.
        columns: the number of columns of panels.
        grid: further arguments of `Figure.subplots`.
    """
    figure = Figure(figsize=(WIDTH, height))
    return figure, list(figure.subplots(rows, columns, squeeze=False, **grid).flat)


def looks(position: int) -> dict[str, object]:
    """Return colour, marker and dashes of the series at a position; no two of 7 share any."""
    colors = mpl.rcParams["axes.prop_cycle"].by_key()["color"]
    return {
        "color": colors[position % len(colors)],
        "marker": MARKERS[position % len(MARKERS)],
        "linestyle": DASHES[position % len(DASHES)],
    }


def method_looks(study: Study) -> dict[str, dict[str, object]]:
    """Return how each method of the study is drawn in every figure, by its name.

    Raises:
        UserError: there are more methods than looks.
    """
    if len(study.methods) > len(MARKERS):
        raise UserError(
            f"{study.path}: has {len(study.methods)} methods, a figure of curves tells "
            f"{len(MARKERS)} apart; the table and the figure called ablation show any number"
        )
    return {method: looks(number) for number, method in enumerate(study.methods)}


def name_methods(axes: Axes, methods: list[str]) -> None:
    """Label the vertical axis with methods, the first on top."""
    axes.set_yticks(range(len(methods)), [method_label(method) for method in methods])
    axes.set_ylim(len(methods) - 0.4, -0.6)


def bars(axes: Axes, values: list[float], texts: list[str]) -> None:
    """Draw horizontal bars with their values written at the end."""
    positions = range(len(values))
    axes.barh(positions, values, height=0.55, color="#9ecae1", edgecolor="black", linewidth=0.6)
    for position, value, text in zip(positions, values, texts, strict=True):
        if value == value:
            axes.annotate(
                text,
                (value, position),
                xytext=(3, 0),
                textcoords="offset points",
                va="center",
                fontsize=6.5,
            )
    axes.margins(x=0.35)
    axes.grid(axis="y", visible=False)


def band(axes: Axes, at: Sequence[float], low: pd.Series, high: pd.Series, color: str) -> None:
    """Fill between two curves; thin edges keep bands apart where they overlap, in grey too."""
    axes.fill_between(at, low, high, color=color, alpha=0.13, linewidth=0)
    for edge in (low, high):
        axes.plot(at, edge, color=color, alpha=0.6, linewidth=0.4)


def legend_below(figure: Figure, axes: Axes, columns: int) -> None:
    """Put one legend under all panels, in columns."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=columns)


def mark_miniature(figure: Figure, study: Study) -> None:
    """Say in the picture itself that it shows a miniature, since pictures travel alone."""
    if study.miniature is not None:
        figure.suptitle(
            "miniature study, not the paper's results",
            fontsize=6,
            color="#666666",
            x=0.995,
            ha="right",
        )


def write_drawing(drawing: Drawing, outputs: list[Path]) -> None:
    """Write a figure to each path: .pdf, .png, .csv (its numbers) or .tex (a figure environment).

    Raises:
        UserError: a suffix is none of these.
    """
    for path in outputs:
        if path.suffix not in (".pdf", ".png", ".csv", ".tex"):
            raise UserError(f"{path}: figures are written as .pdf, .png, .csv or .tex")
    for path in outputs:
        if path.suffix == ".csv":
            write_text(path, frame_csv(drawing.data))
        elif path.suffix == ".tex":
            write_text(path, _figure_environment(drawing, path.with_suffix(".pdf").name))
        else:
            _save(drawing, path)


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


def _figure_environment(drawing: Drawing, file: str) -> str:
    return "\n".join(
        [
            r"\begin{figure}",
            r"\centering",
            rf"\includegraphics{{{file}}}",
            rf"\caption{{{escape_latex(drawing.caption)}}}",
            rf"\label{{fig:{drawing.name}}}",
            r"\end{figure}",
            "",
        ]
    )
