"""The results of a study: the files that tables, figures and claims are made from."""

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

import pandas as pd

from blocklora.errors import UserError
from blocklora.publish.inputs import evidence_file, predictions_file
from blocklora.runs.columns import COLUMNS
from blocklora.runs.predictions import Predictions, read_predictions
from blocklora.study.run import Run, Test
from blocklora.study.study import Study, load_study
from blocklora.theory.measures import columns_of

KEY = ["backbone", "dataset", "method", "shots", "seed"]


class Results:
    """The files in a study's folder of results, each of which is read when it is needed.

    Attributes:
        study: The study.
        folder: Its folder of results, laid out as in docs/architecture.md.
    """

    def __init__(self, study: Study, folder: Path) -> None:
        self.study = study
        self.folder = folder

    def path(self, name: str) -> Path:
        """Return the path of runs.csv or of a CSV file of the theory step; `name` has no .csv."""
        return self.folder / evidence_file(name)

    def has(self, name: str) -> bool:
        """Return whether the CSV file of this name exists; `name` is as for `path`."""
        return self.path(name).exists()

    @cached_property
    def runs(self) -> pd.DataFrame:
        """The rows of `runs.csv` for the runs of the study, in the order of the study.

        Runs without a test accuracy have not finished and are left out.

        Raises:
            UserError: The file is missing, is not valid, or lists a run twice.
        """
        path = self.path("runs")
        frame = read_table(path, COLUMNS)
        duplicates = frame[frame.duplicated(KEY)]
        if len(duplicates):
            first = duplicates.iloc[0][KEY].tolist()
            raise UserError(f"{path}: run {first} is listed twice; aggregate again")
        if len(frame) and not pd.api.types.is_numeric_dtype(frame["test_accuracy"]):
            raise UserError(f"{path}: test_accuracy holds words, not numbers; aggregate again")
        frame = frame[frame["test_accuracy"].notna()]
        present = {Run(*values): index for index, *values in frame[KEY].itertuples(name=None)}
        wanted = [present[run] for run in self.study.runs() if run in present]
        return frame.loc[wanted].reset_index(drop=True)

    @cached_property
    def missing(self) -> tuple[Run, ...]:
        """The runs of the study that are not among `runs`."""
        present = {Run(*values) for values in self.runs[KEY].itertuples(index=False, name=None)}
        return tuple(run for run in self.study.runs() if run not in present)

    def theory(self, name: str, columns: Iterable[str] | None = None) -> pd.DataFrame:
        """Return the rows of a CSV file of the theory step, which must have `columns`.

        By default, these are all columns that the theory step writes.

        Raises:
            UserError: The file is missing, is not a CSV file or lacks a column.
        """
        return read_table(self.path(name), columns or columns_of(name))

    def predictions_path(self, test: Test) -> Path:
        """Return the path of the predictions of a test."""
        return self.folder / predictions_file(test)

    def predictions(self, test: Test) -> Predictions:
        """Return the predictions of a test.

        Raises:
            UserError: The file is missing, damaged or not a file of predictions.
        """
        return read_predictions(self.predictions_path(test))

    def missing_note(self, runs: Iterable[Run] | None = None) -> str | None:
        """Return a sentence that counts missing runs and names the first ones, or None without any.

        Args:
            runs: The missing runs, by default all that the study misses.
        """
        folders = [run.folder for run in (self.missing if runs is None else runs)]
        if not folders:
            return None
        shown = ", ".join(folders[:12])
        more = f" and {len(folders) - 12} more" if len(folders) > 12 else ""
        return f"Missing runs ({len(folders)}): {shown}{more}."


def caption_of(study: Study, text: str) -> str:
    """Return a caption that names the study, and that says so if the study is a miniature."""
    parts = [text, f"Study: {study.title.rstrip('.')}."]
    if study.miniature is not None:
        parts.append("A miniature: its numbers are not comparable with any paper's.")
    return " ".join(parts)


def load_results(study_path: str | Path, folder: str | Path) -> Results:
    """Return the results of a study in a folder.

    Raises:
        UserError: The study file is not valid, or the folder does not exist.
    """
    if not Path(folder).is_dir():
        raise UserError(f"{folder}: no such folder of results")
    return Results(load_study(study_path), Path(folder))


def read_table(path: str | Path, columns: Iterable[str]) -> pd.DataFrame:
    """Read a CSV file that must have `columns`.

    Raises:
        UserError: The file is missing, is not a CSV file or lacks a column.
    """
    try:
        frame = pd.read_csv(path, encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        text = f"{path}: not a readable CSV file ({error}); delete it and run again"
        raise UserError(text) from None
    absent = [column for column in columns if column not in frame.columns]
    if absent:
        text = f"{path}: has no column {', '.join(absent)}"
        raise UserError(f"{text}; delete it and run again with this version")
    return frame
