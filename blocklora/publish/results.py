"""The results of a study, as its tables, figures and claims read them."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from blocklora.errors import UserError
from blocklora.runs.aggregate import COLUMNS
from blocklora.study.model import Run, Study, load_study

KEY = ["backbone", "dataset", "method", "shots", "seed"]


@dataclass(frozen=True)
class Results:
    """What is known of a study.

    Attributes:
        study: the study.
        runs: one row per finished run that belongs to the study, in the study's order; columns
            as in `runs.csv`.
        missing: the runs of the study without a row or without an accuracy.
        path: the aggregate that was read.
    """

    study: Study
    runs: pd.DataFrame
    missing: tuple[Run, ...]
    path: Path

    def missing_note(self, runs: Iterable[Run] | None = None) -> str | None:
        """Return a sentence that lists missing runs (all by default), or None if there is none."""
        folders = [run.folder for run in (self.missing if runs is None else runs)]
        if not folders:
            return None
        shown = ", ".join(folders[:12])
        more = f" and {len(folders) - 12} more" if len(folders) > 12 else ""
        return f"Missing runs ({len(folders)}), shown as an em dash: {shown}{more}."


def caption_of(study: Study, text: str) -> str:
    """Return a caption that says which study it is of, and what a miniature is not."""
    parts = [text, f"Study: {study.title.rstrip('.')}."]
    if study.miniature is not None:
        parts.append("A miniature: its numbers are not comparable with any paper's.")
    return " ".join(parts)


def load_results(study_path: str | Path, runs_path: str | Path) -> Results:
    """Read a study file and the aggregate of its runs.

    Rows of runs that the study does not name are left out.

    Raises:
        UserError: a file is missing or is not what it should be.
    """
    study = load_study(study_path)
    frame = read_table(runs_path, COLUMNS)
    duplicates = frame[frame.duplicated(KEY)]
    if len(duplicates):
        first = duplicates.iloc[0][KEY].tolist()
        raise UserError(f"{runs_path}: run {first} is listed twice; aggregate again")
    if len(frame) and not pd.api.types.is_numeric_dtype(frame["test_accuracy"]):
        raise UserError(f"{runs_path}: test_accuracy holds words, not numbers; aggregate again")
    frame = frame[frame["test_accuracy"].notna()]
    present = {Run(*values): index for index, *values in frame[KEY].itertuples(name=None)}
    wanted = list(study.runs())
    runs = frame.loc[[present[run] for run in wanted if run in present]].reset_index(drop=True)
    missing = tuple(run for run in wanted if run not in present)
    return Results(study, runs, missing, Path(runs_path))


def read_table(path: str | Path, columns: Iterable[str]) -> pd.DataFrame:
    """Read a CSV file that must have `columns`.

    Raises:
        UserError: the file is missing, is not a CSV file or lacks a column.
    """
    try:
        frame = pd.read_csv(path, encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except (UnicodeDecodeError, ValueError) as error:
        raise UserError(
            f"{path}: not a readable CSV file ({error}); delete it and run again"
        ) from None
    absent = [column for column in columns if column not in frame.columns]
    if absent:
        raise UserError(
            f"{path}: has no column {', '.join(absent)}; delete it and run again with this version"
        )
    return frame
