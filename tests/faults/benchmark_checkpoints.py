"""What checkpoints cost and how fast a run goes on: python -m tests.faults.benchmark_checkpoints.

Measures on this machine, in a folder that is deleted, and prints
- the share of a training's time that is spent on checkpoints at the default interval,
- the time from the call to the next step of a run that is resumed, imports left out,
- the time to write the checkpoint of ViT-B/16 with rank 2, as a share of the default interval.
"""

import logging
import os
import tempfile
from dataclasses import replace
from pathlib import Path
from time import perf_counter

import torch

from blocklora import cli
from blocklora.adapters.adapter import Adapter
from blocklora.engine.loop import Progress
from blocklora.engine.randomness import torch_generator
from blocklora.errors import Interrupted
from blocklora.runs import keeper
from blocklora.runs.keeper import save_checkpoint
from tests.faults.pipeline import (
    Stage,
    find,
    forget,
    make_backbone,
    make_study,
    remove_outputs,
    stages,
)
from tests.tiny import LORA

DEFAULT_INTERVAL_SECONDS = 60.0
VIT_B_16 = {"vision": (12, 768), "text": (12, 512)}


class TimedSaves:
    """Stands in for `save_checkpoint` and notes when it is called and how long it takes."""

    def __init__(self, stop_after: int | None = None):
        self.seconds, self.ends, self._stop_after = 0.0, [], stop_after

    def __call__(self, *arguments):
        started = perf_counter()
        save_checkpoint(*arguments)
        self.ends.append(perf_counter())
        self.seconds += self.ends[-1] - started
        if len(self.ends) == self._stop_after:
            raise Interrupted("half-way")


def fit(arguments: tuple[str, ...], saves: TimedSaves) -> float:
    """Call `blocklora fit` in this process and return the seconds it took."""
    keeper.save_checkpoint = saves
    started = perf_counter()
    cli.main(list(arguments))
    return perf_counter() - started


def start_over(folder: Path, stage: Stage) -> None:
    """Remove what a fit left in the results and in the cache."""
    remove_outputs(folder, stage)
    forget(folder, "fits", "tests")


def of_a_run(folder: Path) -> None:
    """Print the first two figures, of a miniature run."""
    study = make_study(folder)
    text = study.read_text().replace("iterations_per_shot: 6", "iterations_per_shot: 300")
    study.write_text(text)
    os.chdir(folder)
    make_backbone(folder)
    stage = find(study, "fit")
    for earlier in stages(study)[: stages(study).index(stage)]:
        assert cli.main(list(earlier.arguments)) == 0
    often = stage.arguments
    default = often[: often.index("--checkpoint-seconds")]
    fit(default, TimedSaves())  # warms up
    start_over(folder, stage)
    saves = TimedSaves()
    seconds = fit(default, saves)
    print(
        f"checkpoints: {100 * saves.seconds / seconds:.2f} % of {seconds:.1f} s "
        f"({len(saves.ends)} of {1000 * saves.seconds / len(saves.ends):.1f} ms)"
    )
    start_over(folder, stage)
    fit(often, TimedSaves(stop_after=300))
    saves = TimedSaves(stop_after=1)
    started = perf_counter()
    fit(often, saves)
    print(f"resumed: next step after {saves.ends[0] - started:.2f} s")


def of_the_papers_size(path: Path) -> None:
    """Print the third figure."""
    generator = torch_generator(1, "initialisation")
    adapter = Adapter.initialise(replace(LORA, rank=2), VIT_B_16, generator, torch.device("cpu"))
    parameters = adapter.parameters()
    optimizer = torch.optim.AdamW(parameters)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    history = [dict.fromkeys(("step", "loss", "train_accuracy", "learning_rate", "seconds"), 0.5)]
    progress = Progress(8000, 1.0, 160 * history, 50 * [(0.5, 1.0, 32)], {})
    times = []
    for _ in range(20):
        started = perf_counter()
        save_checkpoint(path, "run", "0" * 64, (parameters, optimizer, progress))
        times.append(perf_counter() - started)
    worst = max(times)
    print(
        f"ViT-B/16, rank 2: {path.stat().st_size / 1e6:.1f} MB in {1000 * worst:.0f} ms "
        f"at worst, {100 * worst / DEFAULT_INTERVAL_SECONDS:.2f} % of a minute"
    )


if __name__ == "__main__":
    logging.disable(logging.INFO)
    with tempfile.TemporaryDirectory() as name:
        of_a_run(Path(name))
        of_the_papers_size(Path(name, "paper.safetensors"))
        os.chdir("/")
