"""The `blocklora` command line: one subcommand per step of the pipeline."""

import argparse
import logging
import sys

from blocklora import __version__
from blocklora.commands import backbones, cache, data, performance, publish, runs, study, theory
from blocklora.errors import UserError


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    parser = argparse.ArgumentParser(prog="blocklora", description=__doc__)
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    # None of these modules imports torch, pandas or matplotlib before a command of its own runs.
    for module in (study, data, backbones, runs, theory, performance, publish, cache):
        module.add_commands(subparsers)
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run one subcommand and return the exit status: 0, or the error's after a `UserError`."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    options = build_parser().parse_args(arguments)
    try:
        options.run(options)
    except UserError as error:
        print(f"blocklora {options.command}: error: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        print(f"blocklora {options.command}: interrupted", file=sys.stderr)
        return 130
    return 0
