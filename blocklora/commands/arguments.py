"""What command lines share: types of arguments, and an option of several commands."""

from argparse import ArgumentParser, ArgumentTypeError
from pathlib import Path


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


def add_results(parser: ArgumentParser) -> None:
    """Add the folder of a study's results to a command that has the option `--study`."""
    parser.add_argument(
        "--results",
        type=Path,
        metavar="DIR",
        help="folder of the study's results (default: results/<name of the study>)",
    )
