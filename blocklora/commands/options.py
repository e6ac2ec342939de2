"""The options that several commands share, and the class that turns a function into a command.

A command is a function in a module beside this one, and `blocklora/cli.py` lists them all. Its name
and its parameters are those of the function, and `--help` shows its docstring. Modules of commands
import what they need inside the functions, so that the command line starts quickly.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from typer import Context, Option
from typer.core import TyperCommand

from blocklora.engine.engines import ENGINES
from blocklora.engine.precisions import AUTO, PRECISIONS
from blocklora.errors import UserError

if TYPE_CHECKING:
    from blocklora.study.study import Study as WholeStudy

Study = Annotated[str, Option(help="Name of a study in studies/, or path of a study file.")]
Backbone = Annotated[str, Option(help="Name of the backbone in the study.")]
Dataset = Annotated[str, Option(help="Name of the dataset in the study.")]
Results = Annotated[
    Path | None, Option(help="Folder of the study's results (default: results/<name of the study>)")
]
Source = Annotated[Path, Option(help="The source.json of the dataset.")]
Shots = Annotated[int | None, Option(min=1, help="Training images per class.")]
ManyShots = Annotated[list[int] | None, Option(min=1, help="Training images per class.")]
Seeds = Annotated[list[int] | None, Option(min=0, help="Random seeds.")]
Threads = Annotated[int, Option(min=1, help="Number of threads.")]
# Without `Option()`, typer would make a parameter that has no default a positional argument.
RequiredPath = Annotated[Path, Option()]
Output = Annotated[Path, Option(help="File to write.")]
JsonOutput = Annotated[Path | None, Option(help="JSON file to write as well.")]
Outputs = Annotated[
    list[Path] | None,
    Option(help="Files to write, in the formats of their suffixes (default: as in the workflow)"),
]
CacheRoot = Annotated[Path, Option("--cache", help="Folder that all studies share.")]
CACHE = Path("cache")
Key = Annotated[
    str | None,
    Option(help="Digest of the file's definition. Without it, the cache does not keep the file."),
]
Device = Annotated[Literal["cpu", "cuda"], Option(help="Device to compute on.")]
Precision = Annotated[
    Literal[AUTO, *PRECISIONS],
    Option(help="Precision of matrix products; auto is fp16 on a GPU and fp32 on a CPU."),
]
Engine = Annotated[Literal[*ENGINES], Option(help="Implementation of the training.")]
Offline = Annotated[bool, Option(help="Never use the network.")]


class Command(TyperCommand):
    """A command whose options can have several values, described by its function's docstring.

    The docstring may have a section "Args:" about the options that are not described above. It ends
    with examples, each of which begins with "Example: " on a new line.
    """

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        text, *self.examples = re.split(r"\s+Example: ", self.help)
        self.help, _, described = text.partition("\n\nArgs:\n")
        texts = dict(re.findall(r"^    (\w+): (.+(?:\n {8}.+)*)", described, re.MULTILINE))
        for param in self.params:
            param.help = " ".join(texts.get(param.name, param.help or "").split())
            if param.default is False:
                param.secondary_opts = []  # --offline without --no-offline

    def parse_args(self, ctx: Context, args: list[str]) -> list[str]:
        """Parse the arguments after turning `--shots 1 2` into `--shots 1 --shots 2`."""
        several = {name for param in self.params if param.multiple for name in param.opts}
        words, option = [], ""
        for word in args:
            if word.startswith("-"):
                option = word
            elif option in several and words[-1] != option:
                words.append(option)
            words.append(word)
        return super().parse_args(ctx, words)

    def format_epilog(self, ctx: Context, formatter: Any) -> None:
        """Write the values of arguments that have an `autocompletion`, and the examples."""
        for param in self.params:
            if values := [(v.value, v.help) for v in param.shell_complete(ctx, "") if v.help]:
                with formatter.section(f"Values of {param.name}"):
                    formatter.write_dl(values)
        with formatter.section("Examples"):
            for example in self.examples:
                formatter.write("  " + re.sub(r"\n +", " \\\\\n      ", example) + "\n")


def check_name(kind: str, name: str, known: Iterable[str]) -> None:
    """Check a name that was given on the command line.

    Raises:
        UserError: It is not among the known names, which the message lists.
    """
    from blocklora.validation import closest

    known = list(known)
    if name not in known:
        hint = closest(name, known)
        raise UserError(f"there is no {kind} {name!r}{hint} (there are: {', '.join(known)})")


def open_study(name: str, **how: Any) -> "WholeStudy":
    """Return the study with this name or path; see `find_study` and, for `how`, `load_study`."""
    from blocklora.study.study import load_study
    from blocklora.study.study_files import find_study

    return load_study(find_study(name), **how)


def results_of(study: "WholeStudy", results: Path | None) -> Path:
    """Return `results`, or the usual folder of the study's results if that is None."""
    return results or Path("results", study.name)


def provide(cache: Path, key: str | None, kind: str, *entry: Any, link: bool = True) -> None:
    """Put a file at its place by way of the cache, or just write it if there is no key.

    `entry` has the arguments `contents`, `about`, `output` and `write` of `Cache.provide`.
    """
    if key is None:
        *_, output, write = entry
        write(output)
    else:
        from blocklora.cache import Cache

        Cache(cache).provide(kind, key, *entry, link=link)
