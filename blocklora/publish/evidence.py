"""What the claims are judged by: the files of a study, and numbers computed from them."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import pandas as pd

from blocklora.publish.published import is_paper_average, published_backbone
from blocklora.publish.results import Results
from blocklora.study.model import Study


class NotTestedError(Exception):
    """A quantity cannot be computed from what there is; the message says what it needs."""


@dataclass(frozen=True)
class Measured:
    """A number, in words what it is, and the numbers it came from.

    Attributes:
        value: the number that is compared with the threshold.
        text: the value with its unit and where it was found, for people.
        numbers: further values behind it, by name.
    """

    value: float
    text: str
    numbers: Mapping[str, float | int | str] = field(default_factory=dict)


@dataclass(frozen=True)
class Evidence:
    """The results of a study, as claims read them."""

    results: Results

    @property
    def study(self) -> Study:
        """The study."""
        return self.results.study

    @property
    def is_paper(self) -> bool:
        """Whether the study has the 11 datasets and a backbone of the published tables."""
        backbones = self.study.backbones
        return is_paper_average(self.study) and any(
            published_backbone(self.study, backbone) for backbone in backbones
        )

    def frame(self, name: str) -> pd.DataFrame:
        """Return the rows of a measure of the theory step.

        Raises:
            NotTestedError: it has none.
        """
        frame = self.results.theory(name)
        if frame.empty:
            raise NotTestedError(f"{self.results.path(name)} is empty")
        return frame
