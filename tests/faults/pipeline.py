"""A very small study, run command by command as the workflow runs it.

Its images are a dataset of the user's whose names are as hostile as a file system allows; its
backbone has random weights. Commands run in forked processes, which import nothing and can be
killed in the midst of their work instead of in the midst of `import torch`.
"""

import json
import multiprocessing
import os
import resource
import shutil
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from time import monotonic

import numpy as np
import yaml
from PIL import Image

from blocklora.runs.predictions import DTYPES, read_predictions

ROOT = Path(__file__).parents[2]
CLASSES = (
    "red cat",
    "dog's $(touch pwned)",
    'new\nline "quoted"; touch pwned',
    "`touch pwned` ünïcode ∅ --help",
)
FOLDER = "my 'own' \"data\" $(touch pwned)\n*ü"
RESULTS, CACHE = Path("results"), Path("cache")
SEEDS = (1, 2)
SHOTS = 2
METHODS = ("clip_lora", "block_lora")
FIT_FILES = (
    "fit.json",
    "history.csv",
    "adapter.safetensors",
    "tests/own/test.safetensors",
    "tests/own/train.safetensors",
)
# Kinds of what a command takes from the cache as a copy.
COPIED = {
    "verify-data": ("verifications",),
    "shots": ("shots",),
    "test": ("tests",),
    "fit": ("fits", "tests"),
}
PRELOAD = (
    "blocklora.commands.data",
    "blocklora.data.decode",
    "blocklora.data.verify",
    "blocklora.commands.publish",
    "blocklora.publish.figures.accuracy",
    "blocklora.publish.tables.fewshot",
    "blocklora.commands.theory",
    "blocklora.runs.fit",
    "open_clip.tokenizer",
)


@dataclass(frozen=True)
class Stage:
    """One call of `blocklora` and the files it makes, below its working directory."""

    name: str
    arguments: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Outcome:
    """How a call ended: exit status (negative if killed), what it printed, and its seconds."""

    status: int
    text: str
    seconds: float


def make_study(folder: Path) -> Path:
    """Write a study of one dataset of the user's, with its images, and return its file."""
    study = yaml.safe_load((ROOT / "studies/mini.yaml").read_text())
    images = folder / FOLDER
    study |= {"name": "small", "datasets": ["own"], "shots": [SHOTS], "seeds": list(SEEDS)}
    study["own_datasets"] = {"own": {"images": str(images)}}
    study["recipe"] |= {"iterations_per_shot": 6, "log_every": 4, "batch_size": 5}
    study["methods"] = {name: study["methods"][name] for name in ("zero_shot", *METHODS)}
    generator = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2), ("test", 5)):
        for name in CLASSES:
            for number in range(count):
                file = images / split / name / f"{number} $(touch pwned)\n'\".png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(generator.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(file)
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(study, sort_keys=False, allow_unicode=True))
    return path


def stages(study: Path) -> list[Stage]:
    """Return the calls of a study made by `make_study`, in their order.

    They are made in a folder with `make_backbone`; paths are relative, as in the workflow.
    """
    made, results = [], RESULTS

    def add(name: str, *arguments: object, outputs: tuple[str, ...] = (), option="--output"):
        places = [str(results / output) for output in outputs]
        command = [name, *map(str, arguments), *([option, *places] if option else [])]
        made.append(Stage(name, tuple(command), tuple(places)))

    data = results / "data/own"
    source, manifest = data / "source.json", data / "manifest.csv"
    kept = ("--cache", CACHE, "--key", "digest")  # what is made by way of the cache
    add("fetch-dataset", "--study", study, "--dataset", "own", "--data-root", results / "root",
        outputs=("data/own/source.json",))  # fmt: skip
    add("make-manifest", "--source", source, *kept, outputs=("data/own/manifest.csv",))
    add("verify-data", "--source", source, "--manifest", manifest, "--workers", 2, *kept,
        outputs=("data/own/verification.json",))  # fmt: skip
    decode = ("decode-images", "--source", source, "--pixel-budget-gb", 1, *kept)
    add(*decode, "--manifest", manifest, "--size", 32, outputs=("pixels/own/test-32px.npy",))
    shots = tuple(f"shots/own/{SHOTS}shot/seed{seed}.csv" for seed in SEEDS)
    pixels = tuple(f"pixels/own/{SHOTS}shot/seed{seed}.npz" for seed in SEEDS)
    add("shots", "--manifest", manifest, "--shots", SHOTS, "--seeds", *SEEDS, *kept, outputs=shots)
    add(*decode, "--shots-lists", *(results / file for file in shots), outputs=pixels)
    job = (
        "--study", study, "--backbone", "mini-clip", "--dataset", "own", "--results", results,
        "--cache", CACHE,
    )  # fmt: skip
    zero_shot = "runs/mini-clip/own/zero_shot/0shot/seed0/tests/own/test.safetensors"
    add("test", *job, "--method", "zero_shot", outputs=(zero_shot,), option=None)
    add("gate", "--predictions", results / zero_shot, "--backbone", "mini-clip", "--dataset", "own",
        "--mode", "stop", outputs=("gates/mini-clip/own.json",))  # fmt: skip
    for method in METHODS:
        folders = [f"runs/mini-clip/own/{method}/{SHOTS}shot/seed{seed}" for seed in SEEDS]
        add("fit", *job, "--methods", method, "--checkpoint-seconds", 0,
            outputs=tuple(f"{folder}/{file}" for folder in folders for file in FIT_FILES),
            option=None)  # fmt: skip
    published = ("--study", study, "--results", results)
    add("aggregate", *published, outputs=("runs.csv",), option=None)
    add("table", "fewshot", *published,
        outputs=tuple(f"tables/fewshot.{kind}" for kind in ("csv", "md", "tex")))  # fmt: skip
    add("figure", "accuracy", *published, "--backbone", "mini-clip",
        outputs=("figures/accuracy.pdf", "figures/accuracy.png"))  # fmt: skip
    return made


def make_backbone(folder: Path) -> None:
    """Write a backbone with random weights for calls made in `folder`."""
    from blocklora.backbones.weights import save_backbone
    from tests.tiny import SHAPE, tiny_backbone

    path = folder / RESULTS / "backbones/mini-clip.safetensors"
    save_backbone(path, SHAPE, tiny_backbone().weights, "random")


class Runner:
    """Runs `blocklora` in processes forked from one that has imported everything."""

    def __init__(self, output: Path):
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([*PRELOAD])
        self._output = output
        self._context.Process(target=_nothing).start()  # starts the server and its imports

    def __call__(
        self,
        folder: Path,
        arguments: tuple[str, ...],
        after: float | None = None,
        number: int = signal.SIGKILL,
        environment: Mapping[str, str] | None = None,
        largest_file: int = resource.RLIM_INFINITY,
    ) -> Outcome:
        """Run in `folder` to the end, or send a signal if it lives longer than `after` seconds."""
        process = self.start(folder, arguments, environment, largest_file)
        started = monotonic()
        process.join(after)
        with suppress(ProcessLookupError):  # it may end just now
            if process.is_alive():
                os.kill(process.pid, number)
        process.join()
        return Outcome(process.exitcode, self.text(), monotonic() - started)

    def text(self) -> str:
        """Return what the call that was started last has printed so far."""
        return self._output.read_text() if self._output.exists() else ""

    def start(
        self,
        folder: Path,
        arguments: tuple[str, ...],
        environment: Mapping[str, str] | None = None,
        largest_file: int = resource.RLIM_INFINITY,
    ) -> BaseProcess:
        """Start a call and return its process; `largest_file` limits what it writes, in bytes."""
        process = self._context.Process(
            target=_call, args=(arguments, self._output, folder, environment or {}, largest_file)
        )
        process.start()
        return process


def _nothing() -> None:
    pass


def _call(
    arguments: tuple[str, ...],
    output: Path,
    folder: Path,
    environment: Mapping[str, str],
    largest_file: int,
) -> None:
    stream = os.open(output, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.dup2(stream, 1)
    os.dup2(stream, 2)
    os.chdir(folder)
    os.environ.update(environment)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    from blocklora.cli import main

    sys.exit(main(list(arguments)))


def find(study: Path, name: str, output: str = "") -> Stage:
    """Return the first call of a command that makes a file with `output` in its path."""
    return next(
        stage
        for stage in stages(study)
        if stage.name == name and any(output in file for file in stage.outputs)
    )


def remove_outputs(folder: Path, stage: Stage) -> None:
    """Remove what a stage made."""
    for output in stage.outputs:
        (folder / output).unlink(missing_ok=True)


def forget(folder: Path, *kinds: str) -> None:
    """Remove what the cache has of these kinds, so that it has to be made again."""
    for kind in kinds:
        shutil.rmtree(folder / CACHE / kind)


def undo(folder: Path, stage: Stage) -> None:
    """Remove what a stage made, in the cache as well."""
    entries = [p.resolve().parent for o in stage.outputs if (p := folder / o).is_symlink()]
    for entry in entries:
        shutil.rmtree(entry)
    remove_outputs(folder, stage)
    forget(folder, *COPIED.get(stage.name, ()))


def content(path: Path) -> object:
    """Return what a result says, without the times and the memory that it took."""
    data = path.read_bytes()
    if path.name == "history.csv":
        return [line.rpartition(",")[0] for line in data.decode().splitlines()]
    if path.name == "runs.csv":
        header, *rows = (line.split(",") for line in data.decode().splitlines())
        return [_timeless(dict(zip(header, row, strict=True))) for row in rows]
    if path.parent.parent.name == "tests":
        predictions = read_predictions(path)
        arrays = {name: getattr(predictions, name).tolist() for name in DTYPES}
        return arrays | _timeless(predictions.facts)
    if path.name != "fit.json":
        return data
    record = json.loads(data)
    return record | {part: _timeless(record[part]) for part in ("cost", "provenance")}


def _timeless(values: Mapping[str, object]) -> dict[str, object]:
    """Return what depends neither on the clock nor on the machine's memory."""
    return {
        name: value
        for name, value in values.items()
        if not name.endswith(("seconds", "memory_bytes")) and name != "started"
    }


def assert_equal_results(folder: Path, reference: Path) -> None:
    """Check that two folders hold the same results, and that nothing unfinished is in the cache.

    A kill may leave temporary files behind.
    """
    assert [path.name for path in (folder / CACHE).glob("*/*") if path.suffix == ".partial"] == []
    assert [path.name for path in (folder / CACHE / "unfinished").glob("[!.]*")] == []
    names = [
        {
            path.relative_to(place)
            for path in (place / RESULTS).rglob("*")
            if path.is_file() and not path.name.startswith(".")
        }
        for place in (folder, reference)
    ]
    assert names[0] == names[1]
    for name in names[0]:
        assert content(folder / name) == content(reference / name), name
