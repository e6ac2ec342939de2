"""Rows of text as a Markdown table that is also readable as it is."""

from collections.abc import Sequence


def markdown(rows: Sequence[Sequence[str]], left: Sequence[int] = (0,)) -> str:
    """Return the rows, the first of which is the heading, as a table; other columns than `left`
    are aligned to the right."""
    widths = [max(3, *map(len, column)) for column in zip(*rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        aligned = [
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return f"| {' | '.join(aligned)} |"

    rule = ["-" * width if i in left else "-" * (width - 1) + ":" for i, width in enumerate(widths)]
    return "\n".join([line(rows[0]), f"| {' | '.join(rule)} |", *map(line, rows[1:])])
