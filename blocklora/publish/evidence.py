"""The result of a quantity that a claim tests: a number, or the reason why there is none."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import pandas as pd

from blocklora.publish.results import Results


class NotTestedError(Exception):
    """A quantity cannot be computed from the files at hand; the message says what it needs."""


@dataclass(frozen=True)
class Measured:
    """A number with its explanation.

    Attributes:
        value: The number that a claim compares with its threshold.
        text: The number for readers, with its unit and the place where it was found.
        numbers: Further numbers behind it, by name.
    """

    value: float
    text: str
    numbers: Mapping[str, float | int | str] = field(default_factory=dict)


def require(rows: pd.DataFrame, otherwise: str) -> pd.DataFrame:
    """Return the rows that a quantity is computed from.

    Raises:
        NotTestedError: There are no rows; `otherwise` is the message.
    """
    if rows.empty:
        raise NotTestedError(otherwise)
    return rows


def measure(results: Results, name: str) -> pd.DataFrame:
    """Return the rows of a CSV file of the theory step; `name` has no .csv.

    Raises:
        NotTestedError: The file has no rows.
        UserError: The file cannot be used.
    """
    return require(results.theory(name), f"{results.path(name)} is empty")
