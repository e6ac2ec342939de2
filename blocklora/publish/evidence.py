"""The parts that quantities are made of: a measured number, and the reason why there is none."""

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
        text: The number with its unit and where it was found, for readers.
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
    """Return the rows of a measure of the theory step, of which there must be some."""
    return require(results.theory(name), f"{results.path(name)} is empty")
