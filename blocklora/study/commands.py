"""Subcommands of `blocklora.study`."""

from argparse import _SubParsersAction


def add_commands(subparsers: _SubParsersAction) -> None:
    """Add this package's subcommands to the command line."""
