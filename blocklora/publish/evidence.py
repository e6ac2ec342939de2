"""What the claims are judged by: numbers computed from the files of a study."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import pandas as pd

from blocklora.publish.results import Results


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


def require(rows: pd.DataFrame, otherwise: str) -> pd.DataFrame:
    """Return the rows that a quantity is computed from.

    Raises:
        NotTestedError: there are none; `otherwise` is its message.
    """
    if rows.empty:
        raise NotTestedError(otherwise)
    return rows


def measure(results: Results, name: str) -> pd.DataFrame:
    """Return the rows of a measure of the theory step.

    Raises:
        NotTestedError: it has none.
    """
    return require(results.theory(name), f"{results.path(name)} is empty")
