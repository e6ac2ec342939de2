"""The `blocklora` command line, which has a command for each step of the pipeline."""

import logging
import os
import sys
from itertools import groupby
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from blocklora import __version__
from blocklora.commands import backbones, cache, data, performance, publish, runs, study, theory
from blocklora.commands.options import Command
from blocklora.errors import UserError
from blocklora.runs.failures import failures_explained

# In the order of the pipeline. None of these modules imports torch, pandas or matplotlib before one
# of its commands runs.
SECTIONS = {
    "Studies": (study.check_study, study.status, performance.plan, study.schema),
    "Data": (
        data.fetch_dataset,
        data.make_manifest,
        data.verify_data,
        data.shots,
        data.decode_images,
    ),
    "Backbones": (backbones.fetch_backbone, backbones.pretrain_backbone),
    "Fits and tests": (runs.test, runs.gate, runs.fit),
    "Results": (
        publish.aggregate,
        theory.measure,
        publish.table,
        publish.figure,
        publish.publish,
        publish.claims,
    ),
    "Trained adapters": (runs.predict, runs.merge),
    "This machine": (performance.bench, cache.cache),
}


class Pipeline(TyperGroup):
    """All commands; the help shows them by section."""

    def format_commands(self, ctx: typer.Context, formatter: Any) -> None:
        """Write a line for each command below the title of its section."""
        width = max(map(len, self.commands))
        sections = groupby(self.commands.values(), lambda command: command.rich_help_panel)
        for section, commands in sections:
            with formatter.section(section):
                lines = [(each.name.ljust(width), each.get_short_help_str(60)) for each in commands]
                formatter.write_dl(lines)


app = typer.Typer(
    cls=Pipeline, rich_markup_mode=None, add_completion=False, pretty_exceptions_enable=False
)


def _print_version(asked: bool) -> None:
    if asked:
        print(f"blocklora {__version__}")
        raise typer.Exit


@app.callback()
def pipeline(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, help="Show the version and exit.")
    ] = False,
) -> None:
    """Reproduce Block-LoRA step by step.

    Snakemake calls these commands in the right order and with the right files; each can also be
    called by hand. `blocklora COMMAND --help` shows the options of a command, with examples.
    """


for title, functions in SECTIONS.items():
    for function in functions:
        app.command(cls=Command, rich_help_panel=title)(function)

commands = typer.main.get_command(app)


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit status.

    The status is 0 after success, 2 after a wrong call, 130 after Ctrl-C, and that of the error
    (`errors.py`) if the command fails. If the program that reads the output, such as `head`, has
    ended, it is 141, with which shells report an end by SIGPIPE.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        status = _run(sys.argv[1:] if arguments is None else arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        # The interpreter would try to write the rest of the output once more when it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return status


def _run(arguments: list[str]) -> int:
    name = arguments[0] if arguments else ""
    program = f"blocklora {name}" if name in commands.commands else "blocklora"
    try:
        with commands.make_context("blocklora", [*arguments]) as context, failures_explained():
            commands.invoke(context)
    except typer.Exit as end:
        return end.exit_code
    except typer.TyperException as error:
        text = " ".join(error.format_message().split())
        print(f"{program}: error: {text} (see {program} --help)", file=sys.stderr)
        return error.exit_code
    except UserError as error:
        print(f"{program}: error: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        return 130
    return 0
