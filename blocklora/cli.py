"""The `blocklora` command line: one subcommand per step of the pipeline."""

import argparse
import logging
import sys
from importlib import import_module

from blocklora import __version__
from blocklora.errors import UserError

# Each module adds its subcommands; none of them imports torch, pandas or matplotlib before a
# command of its own runs.
COMMAND_MODULES = (
    "blocklora.commands.study",
    "blocklora.commands.data",
    "blocklora.commands.backbones",
    "blocklora.commands.runs",
    "blocklora.commands.theory",
    "blocklora.commands.performance",
    "blocklora.commands.publish",
)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    parser = argparse.ArgumentParser(prog="blocklora", description=__doc__)
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in COMMAND_MODULES:
        import_module(module).add_commands(subparsers)
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
