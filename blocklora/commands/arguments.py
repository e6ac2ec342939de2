"""What command lines share: how subcommands and options are added, and types of arguments."""

import inspect
from argparse import ArgumentParser, ArgumentTypeError, Namespace, _SubParsersAction
from collections.abc import Callable
from pathlib import Path
from typing import Any

from blocklora.engine.precisions import PRECISIONS

# Options of several commands.
OPTIONS: dict[str, dict[str, Any]] = {
    "study": {"type": Path, "required": True, "help": "study file"},
    "backbone": {"required": True, "help": "name of the backbone in the study"},
    "dataset": {"required": True, "help": "name of the dataset in the study"},
    "results": {
        "type": Path,
        "metavar": "DIR",
        "help": "folder of the study's results (default: results/<name of the study>)",
    },
    "cache": {
        "type": Path,
        "metavar": "DIR",
        "default": Path("cache"),
        "help": "folder of what studies share (default: cache)",
    },
    "key": {
        "metavar": "DIGEST",
        "help": "look the file up in the cache under this digest and what it is made from, and "
        "keep it there (default: make it)",
    },
    "device": {"choices": ("cpu", "cuda"), "default": "cpu"},
    "precision": {"choices": tuple(PRECISIONS), "default": "fp32"},
    "offline": {"action": "store_true", "help": "never use the network"},
}


def add_command(subparsers: _SubParsersAction, run: Callable[[Namespace], None]) -> ArgumentParser:
    """Add the subcommand that `run` does, and return its parser.

    It is named after the function and described by the docstring, whose first line is shown in the
    list of all commands.
    """
    about = inspect.getdoc(run) or ""
    first = about.partition("\n")[0].removesuffix(".")
    name = run.__name__.lstrip("_").replace("_", "-")
    parser = subparsers.add_parser(name, help=first[:1].lower() + first[1:], description=about)
    parser.set_defaults(run=run)
    return parser


def add_options(parser: ArgumentParser, *shared: str, **paths: str) -> None:
    """Add some of `OPTIONS`, then options that are required paths, with their help."""
    for name in shared:
        parser.add_argument(f"--{name}", **OPTIONS[name])
    for name, about in paths.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=Path, required=True, help=about)


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


def provide(
    options: Namespace,
    kind: str,
    contents: object,
    about: str,
    output: Path,
    write: Callable[[Path], None],
    *,
    link: bool = True,
) -> None:
    """Write the file `output`, by way of the cache where `--key` is given; see `Cache.provide`."""
    if options.key is None:
        write(output)
        return
    from blocklora.cache import Cache

    Cache(options.cache).provide(kind, options.key, contents, about, output, write, link=link)
