"""What the claims are judged by: the files of a study, and numbers computed from them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from blocklora.publish.published import is_paper_average, published_backbone
from blocklora.publish.results import Results, load_results, read_table
from blocklora.publish.tables.cost import EFFICIENCY_COLUMNS
from blocklora.publish.tables.theory import (
    BOUND_COLUMNS,
    COMPRESSION_COLUMNS,
    GAP_COLUMNS,
    SPECTRA_COLUMNS,
)
from blocklora.study.model import Study

FILE_COLUMNS = {
    "bounds": BOUND_COLUMNS,
    "gaps": GAP_COLUMNS,
    "spectra": SPECTRA_COLUMNS,
    "compression": COMPRESSION_COLUMNS,
    "efficiency": EFFICIENCY_COLUMNS,
}


class NotTestedError(Exception):
    """A quantity cannot be computed from what there is; the message says what it needs."""


@dataclass(frozen=True)
class Measured:
    """A number, in words what it is, and the numbers it came from.

    Attributes:
        value: what is compared with the threshold.
        text: the value with its unit and where it was found, for people.
        numbers: further values behind it, by name.
    """

    value: float
    text: str
    numbers: Mapping[str, float | int | str] = field(default_factory=dict)


@dataclass(frozen=True)
class Evidence:
    """A study, its results (None without an aggregate) and the other files that were given."""

    study: Study
    results: Results | None
    frames: Mapping[str, pd.DataFrame]
    paths: Mapping[str, Path]

    @classmethod
    def gather(cls, study: Study, **paths: Path | None) -> "Evidence":
        """Read the given files: `aggregate` and those of `FILE_COLUMNS`.

        Raises:
            UserError: a given file is missing or is not what it should be.
        """
        given = {name: path for name, path in paths.items() if path is not None}
        results = load_results(study.path, given["aggregate"]) if "aggregate" in given else None
        frames = {
            name: read_table(given[name], columns)
            for name, columns in FILE_COLUMNS.items()
            if name in given
        }
        return cls(study, results, frames, given)

    @property
    def is_paper(self) -> bool:
        """Whether the study has the 11 datasets and a backbone of the published tables."""
        backbones = self.study.backbones
        return is_paper_average(self.study) and any(
            published_backbone(self.study, backbone) for backbone in backbones
        )

    def frame(self, name: str) -> pd.DataFrame:
        """Return a file's rows.

        Raises:
            NotTestedError: it has none.
        """
        if self.frames[name].empty:
            raise NotTestedError(f"{self.paths[name]} is empty")
        return self.frames[name]
