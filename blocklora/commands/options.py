"""The options that several commands share, and the class that turns a function into a command.

A command is a function in a module of this folder, and `blocklora/cli.py` lists them all. Its name
and its options are those of the function, and `--help` shows its docstring. Modules of commands
import what they need inside the functions, so that the command line starts quickly.
"""

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperCommand

from blocklora.engine.engines import ENGINES
from blocklora.engine.precisions import PRECISIONS
from blocklora.errors import UserError

if TYPE_CHECKING:
    from blocklora.study.model import Study as LoadedStudy


def _option(text: str, *names: str, **settings: Any) -> Any:
    return typer.Option(*names, help=text, **settings)


# Required options that the docstring of a command describes.
File = Annotated[Path, typer.Option()]
Files = Annotated[list[Path], typer.Option()]
Text = Annotated[str, typer.Option()]
Number = Annotated[float, typer.Option()]

Study = Annotated[str, _option("Name of a study in studies/, or path of a study file.")]
Backbone = Annotated[str, _option("Name of the backbone in the study.")]
Dataset = Annotated[str, _option("Name of the dataset in the study.")]
Results = Annotated[
    Path | None, _option("Folder of the study's results (default: results/<name of the study>).")
]
Count = Annotated[int, typer.Option(min=1)]
Numbers = Annotated[list[int], typer.Option(min=1)]
Shots = Annotated[int | None, _option("Training images per class.", min=1)]
ManyShots = Annotated[list[int] | None, _option("Training images per class.", min=1)]
Seeds = Annotated[list[int] | None, _option("Random seeds.", min=0)]
Source = Annotated[Path, _option("The source.json of the dataset.")]
Adapter = Annotated[Path, _option("The adapter.safetensors of a finished run.")]
BackboneFile = Annotated[Path, _option("The backbone file that the adapter was trained on.")]
Scratch = Annotated[
    str, _option("Folder for copies of weights and pixels, such as $TMPDIR (default: none).")
]
Workers = Annotated[
    int, _option("Threads that prepare batches ahead and decode missing pixels.", min=0)
]
Output = Annotated[Path, _option("File to write.")]
Outputs = Annotated[
    list[Path] | None,
    _option("Files to write, in the formats of their suffixes (default: as the workflow does)."),
]
CacheRoot = Annotated[Path, _option("Folder of what all studies share.", "--cache")]
Key = Annotated[
    str | None,
    _option("Keep the file in the cache under this digest, or take it from there (default: no)."),
]
Device = Annotated[Literal["cpu", "cuda"], _option("Device that computes.")]
Precision = Annotated[Literal[*PRECISIONS], _option("Precision of matrix products.")]
Engine = Annotated[Literal[*ENGINES], _option("Implementation of the training.")]
Offline = Annotated[bool, _option("Never use the network.")]

CACHE = Path("cache")


class Command(TyperCommand):
    """A command that is described by the docstring of its function.

    Its options may take several values, and a section "Args:" of the docstring describes those that
    are not described above. The section "Examples:" is the end of the help.
    """

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        text, _, self.examples = self.help.partition("\n\nExamples:\n")
        self.help, _, described = text.partition("\n\nArgs:\n")
        texts = dict(re.findall(r"^    (\w+): (.+(?:\n {8}.+)*)", described, re.MULTILINE))
        for param in self.params:
            param.help = " ".join(texts.get(param.name, param.help or "").split())
            if param.default is False:
                param.secondary_opts = []  # no --no-restart beside --restart

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:
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

    def format_epilog(self, ctx: typer.Context, formatter: Any) -> None:
        """Write the values of arguments that have an `autocompletion`, and the examples."""
        for param in self.params:
            found = param.shell_complete(ctx, "")
            if values := [(item.value, item.help) for item in found if item.help]:
                with formatter.section(f"Values of {param.name.upper()}"):
                    formatter.write_dl(values)
        with formatter.section("Examples"):
            formatter.write(re.sub("^  ", "", self.examples, flags=re.MULTILINE) + "\n")


def check_name(kind: str, name: str, known: Iterable[str], *, where: str = "") -> None:
    """Check a name that was given on the command line.

    Raises:
        UserError: it is not among the known names, which the message lists.
    """
    from blocklora.validation import closest

    known = list(known)
    if name not in known:
        hint = closest(name, known)
        raise UserError(f"{where}there is no {kind} {name!r}{hint} (there are: {', '.join(known)})")


def open_study(
    name: str, *, backbone: str | None = None, dataset: str | None = None, **how: Any
) -> "LoadedStudy":
    """Return a study, after checking that it has the backbone and the dataset, if they are given.

    Raises:
        UserError: there is no such study, it has mistakes, or it lacks one of them.
    """
    from blocklora.study.files import find_study
    from blocklora.study.model import load_study

    study = load_study(find_study(name), **how)
    if backbone is not None:
        check_name("backbone", backbone, study.backbones, where=f"{study.path}: ")
    if dataset is not None:
        check_name("dataset", dataset, study.datasets, where=f"{study.path}: ")
    return study


def results_of(study: "LoadedStudy", results: Path | None) -> Path:
    """Return the folder of a study's results: `results`, or the usual one if that is None."""
    return results or Path("results", study.name)


def provide(
    cache: Path,
    key: str | None,
    kind: str,
    contents: object,
    about: str,
    output: Path,
    write: Callable[[Path], None],
    *,
    link: bool = True,
) -> None:
    """Write the file `output`, by way of the cache if there is a key; see `Cache.provide`."""
    if key is None:
        write(output)
        return
    from blocklora.cache import Cache

    Cache(cache).provide(kind, key, contents, about, output, write, link=link)
