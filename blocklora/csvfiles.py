"""Reading and writing small CSV files without pandas, which takes long to import."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from blocklora.errors import UserError
from blocklora.files import write_text


def write_rows(path: str | Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows as CSV, with a header.

    `None` or a missing value becomes an empty cell, and booleans become `true` and `false`.

    Raises:
        ValueError: A row has a column that is not among `columns`.
        UserError: The file cannot be written; see `atomic_path`.
    """
    stream = io.StringIO()
    writer = csv.DictWriter(stream, columns, lineterminator="\n")
    writer.writeheader()
    words = {True: "true", False: "false"}
    for row in rows:
        writer.writerow({k: words[v] if isinstance(v, bool) else v for k, v in row.items()})
    write_text(path, stream.getvalue())


def read_rows(
    path: str | Path, columns: Sequence[str], remedy: str = "make it again"
) -> list[dict[str, str]]:
    """Return the rows of a CSV file, which must have at least `columns`.

    A byte order mark, which spreadsheets may write, is skipped.

    Raises:
        UserError: The file is missing, is not CSV in UTF-8, lacks a column or has a row of another
            length. Unless the file is missing, the message ends with `remedy`.
    """
    try:
        with Path(path).open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream, strict=True)
            rows = list(reader)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a readable CSV file ({error}); {remedy}") from None
    missing = [column for column in columns if column not in (reader.fieldnames or ())]
    if missing:
        raise UserError(f"{path}: the column {', '.join(missing)} is missing; {remedy}")
    for number, row in enumerate(rows, start=2):
        if None in row or None in row.values():
            raise UserError(f"{path}, line {number}: wrong number of cells; {remedy}")
    return rows
