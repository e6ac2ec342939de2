"""Functions that print numbers as tables show them.

They are not called for unknown numbers (NaN), for which `cell` prints a dash.
"""

from collections.abc import Callable
from math import inf, isnan
from typing import Any

DASH = "—"
MINUS = "−"


def cell(show: Callable[..., str], value: Any, *others: Any) -> str:
    """Return the text that `show` makes of some values, or a dash if the first one is NaN."""
    return DASH if isinstance(value, float) and isnan(value) else show(value, *others)


def shots(count: int) -> str:
    """Return a number of shots with its unit, such as "1 shot" or "4 shots"."""
    return "1 shot" if count == 1 else f"{count} shots"


def percent(mean: float, std: float = float("nan"), seeds: int = 1, expected: int = 1) -> str:
    """Return a mean and a standard deviation, both in percent, such as "81.2 ± 0.4".

    If fewer than the expected seeds are known, their number follows in brackets.
    """
    text = f"{mean:.1f}" if isnan(std) else f"{mean:.1f} ± {std:.1f}"
    return text if seeds >= expected else f"{text} ({seeds})"


def signed(value: float, digits: int = 2) -> str:
    """Return a difference with its sign, which is left out if the difference rounds to zero."""
    text = f"{abs(value):.{digits}f}"
    if float(text) == 0:
        return text
    return ("+" if value > 0 else MINUS) + text


def share(value: float) -> str:
    """Return a fraction as a percentage, such as "43.8%"."""
    return f"{value:.1%}"


def ratio(part: float, whole: float) -> str:
    """Return a part and its whole, such as "3 of 8"."""
    return f"{part:.0f} of {whole:.0f}"


def partition(blocks: int, name: str) -> str:
    """Return the name of a partition, or a dash for an adapter of one block, which has none."""
    return DASH if blocks == 1 else name


def giga(value: float) -> str:
    """Return a number in units of 10^9, with four significant digits."""
    return number(value / 1e9, 4)


def interval(low: float, high: float) -> str:
    """Return the limits of an interval with their signs, such as "[−0.20, +0.35]"."""
    return f"[{signed(low)}, {signed(high)}]"


def p_value(value: float) -> str:
    """Return a p value with three decimals, or "< 0.001" if all of them would be zero."""
    return "< 0.001" if value < 0.0005 else f"{value:.3f}"


def number(value: float, digits: int = 3) -> str:
    """Return a number rounded to `digits` significant digits.

    Numbers below 0.0001, and from 10^9 on, are printed with an exponent. With 3 digits, 1234567
    becomes "1,230,000" and 0.0000012 becomes "1.20e−06".
    """
    if value == 0:
        return "0"
    scientific = f"{value:.{digits - 1}e}"
    magnitude = int(scientific.split("e")[1])  # of the rounded value, since 9.999 prints as 10.0
    if magnitude < -4 or magnitude > 8:
        return scientific.replace("-", MINUS)
    decimals = max(0, digits - 1 - magnitude)
    return f"{float(scientific):,.{decimals}f}".replace("-", MINUS)


def count(value: float) -> str:
    """Return a whole number with thousands separated by commas."""
    return f"{round(value):,}"


def _in_units(value: float, *units: tuple[float, float, str]) -> str:
    """Return a value in the first unit (limit, size, symbol) whose limit exceeds it."""
    size, symbol = next((size, symbol) for limit, size, symbol in units if value < limit)
    return f"{number(value / size)} {symbol}"


def size(value: float) -> str:
    """Return a number of bytes in B, kB, MB or GB (powers of 1000), to three significant digits."""
    units = ((999.5, 1, "B"), (999.5e3, 1e3, "kB"), (999.5e6, 1e6, "MB"), (inf, 1e9, "GB"))
    return _in_units(value, *units)


def duration(seconds: float) -> str:
    """Return a time in ms, s, min or h, with three significant digits."""
    return _in_units(seconds, (1, 1e-3, "ms"), (120, 1, "s"), (7200, 60, "min"), (inf, 3600, "h"))


def energy(joules: float) -> str:
    """Return an energy in J, Wh or kWh, with three significant digits."""
    return _in_units(joules, (3600, 1, "J"), (3.6e6, 3600, "Wh"), (inf, 3.6e6, "kWh"))


def span(low: float, high: float) -> str:
    """Return "low to high", or one number if both are printed alike."""
    first, last = number(low), number(high)
    return first if first == last else f"{first} to {last}"
