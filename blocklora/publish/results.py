"""The results of a study, as its tables, figures and claims read them."""

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

import pandas as pd

from blocklora.errors import UserError
from blocklora.publish.places import evidence_file, predictions_file
from blocklora.runs.columns import COLUMNS
from blocklora.runs.predictions import Predictions, read_predictions
from blocklora.study.model import Study, load_study
from blocklora.study.run import Run, Test
from blocklora.theory.measures import columns_of

KEY = ["backbone", "dataset", "method", "shots", "seed"]


class Results:
    """What is known of a study: the files in its folder, each read when it is first asked for.

    Attributes:
        study: the study.
        folder: the folder of its results, laid out as in docs/architecture.md.
    """

    def __init__(self, study: Study, folder: Path) -> None:
        self.study = study
        self.folder = folder
        self._theory: dict[str, pd.DataFrame] = {}

    def path(self, name: str) -> Path:
        """Return the file of an evidence: of "runs", or of a measure of the theory step."""
        return self.folder / evidence_file(name)

    def has(self, name: str) -> bool:
        """Return whether the file of an evidence is there."""
        return self.path(name).exists()

    @cached_property
    def runs(self) -> pd.DataFrame:
        """One row per finished run that belongs to the study, in the study's order.

        The columns are those of `runs.csv`. A run without an accuracy is not a finished one.

        Raises:
            UserError: the file is missing or is not what it should be.
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
        """Return the rows of a measure, which have `columns`: by default, those of the theory step.

        Raises:
            UserError: the file is missing or lacks a column.
        """
        if name not in self._theory:
            self._theory[name] = read_table(self.path(name), columns or columns_of(name))
        return self._theory[name]

    def predictions_path(self, test: Test) -> Path:
        """Return the file of the predictions of a test."""
        return self.folder / predictions_file(test)

    def predictions(self, test: Test) -> Predictions:
        """Return the predictions of a test.

        Raises:
            UserError: the file is missing or is not what it should be.
        """
        return read_predictions(self.predictions_path(test))

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


def load_results(study_path: str | Path, folder: str | Path) -> Results:
    """Return the results of a study file that lie in `folder`.

    Raises:
        UserError: the study file is not what it should be, or there is no such folder.
    """
    if not Path(folder).is_dir():
        raise UserError(f"{folder}: no such folder of results")
    return Results(load_study(study_path), Path(folder))


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
