"""Types of command line arguments."""

from argparse import ArgumentTypeError


def positive(text: str) -> int:
    """Return an integer of at least 1."""
    if natural(text) == 0:
        raise ArgumentTypeError(f"{text!r} is not a positive integer")
    return int(text)


def natural(text: str) -> int:
    """Return an integer of at least 0."""
    if not text.isdecimal():
        raise ArgumentTypeError(f"{text!r} is not a positive integer or 0")
    return int(text)
