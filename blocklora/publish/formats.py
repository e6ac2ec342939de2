"""Numbers as tables print them."""

from math import isnan

DASH = "—"
MINUS = "−"


def shots(count: int) -> str:
    """Return "1 shot" or "4 shots"."""
    return "1 shot" if count == 1 else f"{count} shots"


def percent(mean: float, std: float = float("nan"), seeds: int = 1, expected: int = 1) -> str:
    """Return "81.2 ± 0.4" from percentages; the number of seeds follows where some are missing."""
    if isnan(mean):
        return DASH
    text = f"{mean:.1f}" if isnan(std) else f"{mean:.1f} ± {std:.1f}"
    return text if seeds >= expected else f"{text} ({seeds})"


def signed(value: float, digits: int = 2) -> str:
    """Return a difference with its sign; what rounds to zero has none."""
    if isnan(value):
        return DASH
    text = f"{abs(value):.{digits}f}"
    if float(text) == 0:
        return text
    return ("+" if value > 0 else MINUS) + text


def share(value: float) -> str:
    """Return a fraction as a percentage."""
    return DASH if isnan(value) else f"{value:.1%}"


def ratio(part: float, whole: float) -> str:
    """Return "3 of 8"."""
    return DASH if isnan(whole) else f"{part:.0f} of {whole:.0f}"


def partition(blocks: int, name: str) -> str:
    """Return the name of a partition; with one block there is none."""
    return DASH if blocks == 1 else name


def giga(value: float) -> str:
    """Return a number in thousands of millions, with four digits."""
    return number(value / 1e9, 4)


def interval(low: float, high: float, digits: int = 2) -> str:
    """Return "[low, high]"."""
    if isnan(low) or isnan(high):
        return DASH
    return f"[{signed(low, digits)}, {signed(high, digits)}]"


def p_value(value: float) -> str:
    """Return a p value with three decimals."""
    if isnan(value):
        return DASH
    return "< 0.001" if value < 0.0005 else f"{value:.3f}"


def number(value: float, digits: int = 3) -> str:
    """Return a positive or negative number with significant digits, without an exponent if short.

    1234567 becomes "1,230,000" with 3 digits, 0.0000012 becomes "1.20e-06".
    """
    if isnan(value):
        return DASH
    if value == 0:
        return "0"
    scientific = f"{value:.{digits - 1}e}"
    magnitude = int(scientific.split("e")[1])  # of the rounded value: 9.999 prints as 10.0
    if magnitude < -4 or magnitude > 8:
        return scientific.replace("-", MINUS)
    decimals = max(0, digits - 1 - magnitude)
    return f"{float(scientific):,.{decimals}f}".replace("-", MINUS)


def count(value: float) -> str:
    """Return a whole number with thousands separated by commas."""
    return DASH if isnan(value) else f"{round(value):,}"


def size(value: float) -> str:
    """Return a number of bytes in B, kB, MB or GB (powers of 1000), with three digits."""
    if isnan(value):
        return DASH
    for unit in ("B", "kB", "MB"):
        if abs(value) < 999.5:
            return f"{number(value)} {unit}"
        value /= 1000
    return f"{number(value)} GB"


def duration(seconds: float) -> str:
    """Return a time in ms, s, min or h, with three digits."""
    if isnan(seconds):
        return DASH
    if seconds < 1:
        return f"{number(seconds * 1000)} ms"
    if seconds < 120:
        return f"{number(seconds)} s"
    if seconds < 7200:
        return f"{number(seconds / 60)} min"
    return f"{number(seconds / 3600)} h"


def span(low: float, high: float) -> str:
    """Return "low to high", or one number where both are printed alike."""
    first, last = number(low), number(high)
    return first if first == last else f"{first} to {last}"


def energy(joules: float) -> str:
    """Return an energy in J, Wh or kWh, with three digits."""
    if isnan(joules):
        return DASH
    if joules < 3600:
        return f"{number(joules)} J"
    hours = joules / 3600
    return f"{number(hours)} Wh" if hours < 1000 else f"{number(hours / 1000)} kWh"
