"""Measures the fast engine and the reference in one setting, which is a piece of the benchmark.

Each engine runs in a process of its own. The processes take turns, so a disturbance of the machine
affects all of them, and the medians over the rounds are reported. On a GPU at most two of them are
alive at once, because each holds its weights and a context of the GPU.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from itertools import product
from math import inf
from time import perf_counter
from typing import Any

from blocklora.backbones.prompts import class_prompts, tokenize
from blocklora.backbones.shape import ClipConfig
from blocklora.data.imagenet import read_classes
from blocklora.data.registry import PACKAGED
from blocklora.engine.fast import Chunks
from blocklora.engine.needs import Setting, planned_peak_bytes
from blocklora.engine.plan import Plan, plan
from blocklora.performance.entries import Facts, entry
from blocklora.performance.machine import Machine
from blocklora.performance.protocol import ADAPTER, RECIPE
from blocklora.performance.traffic import count_step
from blocklora.performance.trial import Device, Training
from blocklora.performance.worker import OutOfMemory, Worker

TOWERS = {"both": ("vision", "text"), "vision": ("vision",), "text": ("text",)}
# The trials that are alive at once, by device.
GROUPS = {
    "cpu": [("fast", "towers", "vision", "device", "reference")],
    "cuda": [("fast", "reference"), ("unrecorded", "device"), ("towers", "vision")],
}
# No round of a group but its first starts later than this many seconds after the start of the
# piece. The rest of a piece should take less than a minute more on a GPU.
ROUNDS_SECONDS = {"cpu": inf, "cuda": 60.0}


@dataclass(frozen=True)
class Trial:
    """A measurement in a process of its own.

    Attributes:
        build: The class and the arguments of an object of `trial.py`.
        questions: Names of the object's methods that are called after the last round.
    """

    build: tuple[Any, ...]
    questions: tuple[str, ...]


def settings(
    clip: ClipConfig,
    classes: Sequence[int],
    batch_sizes: Sequence[int],
    towers: Sequence[str],
    precisions: Sequence[str],
) -> Iterator[Setting]:
    """Yield the setting of every combination; its class names are the first ones of ImageNet.

    `towers` holds keys of `TOWERS`. Classes vary fastest, then batch sizes, precisions and towers.
    """
    names = list(read_classes(PACKAGED / "imagenet_classes.txt").values())
    prompts = tokenize(class_prompts(names, RECIPE.prompt), clip.context_length)
    for tower, precision, batch_size, count in product(towers, precisions, batch_sizes, classes):
        adapter = replace(ADAPTER, towers=TOWERS[tower])
        yield Setting(clip, adapter, tuple(map(tuple, prompts[:count])), batch_size, precision)


def measure(
    setting: Setting,
    machine: Machine,
    rounds: int,
    memory_bytes: int | None,
    with_reference: bool,
) -> Facts:
    """Measure a setting and return its entry in the JSON file.

    Args:
        setting: The setting of the training.
        machine: The device and the number of threads.
        rounds: The largest number of turns of each process.
        memory_bytes: The bytes that a training by the fast engine may need by its plan. If it is
            None, the engine encodes everything at once.
        with_reference: True to measure the reference engine as well.

    Raises:
        UserError: The device is not available or cannot compute in the precision, memory is too
            small for the smallest chunks, or a process has ended unexpectedly.
    """
    start = perf_counter()
    if memory_bytes is None:
        chosen = Plan(Chunks(), planned_peak_bytes(setting, Chunks()))
    else:
        chosen = plan(setting, memory_bytes)
    trials = _trials(setting, machine, chosen.chunks, with_reference)
    found: dict[str, Facts | None] = {}
    for names in GROUPS[machine.device]:
        group = {name: trials[name] for name in names if name in trials}
        found |= take_turns(group, rounds, start + ROUNDS_SECONDS[machine.device])
    flops, traffic = count_step(setting, chosen.chunks)
    result = entry(setting, chosen, flops, traffic, found)
    return {**result, "piece_seconds": perf_counter() - start}


def _trials(
    setting: Setting, machine: Machine, chunks: Chunks, with_reference: bool
) -> dict[str, Trial]:
    """Return the trials of a piece by name."""
    on_gpu = machine.device == "cuda"
    after = ("peak_memory", "optimizer_seconds", "recorded", "kernels", "test_seconds")
    trials = {"fast": Trial((Training, machine, setting, "fast", chunks), after)}
    if with_reference:
        build = Training, machine, setting, "reference", Chunks()
        trials["reference"] = Trial(build, ("peak_memory", "counted_flops"))
    if on_gpu:
        build = Training, machine, setting, "fast", chunks, False
        trials["unrecorded"] = Trial(build, ("peak_memory",))
    for name, part in _reductions(setting).items():
        build = Training, machine, part, "fast", chunks
        trials[name] = Trial(build, ("optimizer_seconds",))
    build = Device, machine, setting.precision, setting.clip.image_size, setting.batch_size
    trials["device"] = Trial(build, ("augmentation_seconds",))
    return trials


def _reductions(setting: Setting) -> dict[str, Setting]:
    """Return smaller settings by name; the differences between their times give those of parts.

    Each adapted tower has a single low-rank path, in its first layer, so that the gradients still
    pass through the whole tower. There are no such settings if only one tower is adapted.
    """
    if len(setting.adapter.towers) < 2:
        return {}
    least = replace(setting.adapter, rank=1, dropout=0.0, matrices=("q",), layers=(0, 0))
    vision = replace(least, towers=("vision",))
    return {"towers": replace(setting, adapter=least), "vision": replace(setting, adapter=vision)}


def take_turns(trials: Mapping[str, Trial], rounds: int, until: float) -> dict[str, Facts | None]:
    """Measure trials, whose processes are alive at once, and return what was found by name.

    Of each trial, this is the answer to "start", the list "turns" with an answer for each round,
    and the answers to its questions. It is None if the trial has run out of memory.

    Args:
        trials: The trials by name.
        rounds: The largest number of rounds; there is at least one.
        until: The time by `perf_counter` after which no further round starts.

    Raises:
        UserError: As for `measure`.
    """
    found: dict[str, Facts | None] = {}
    with ExitStack() as stack:
        workers = {}

        def ask(name: str, method: str) -> None:
            try:
                answer = workers[name].ask(method)
            except OutOfMemory:
                del workers[name]
                found[name] = None
                return
            if method == "turn":
                found[name]["turns"].append(answer)
            else:
                found[name][method] = answer

        for name, trial in trials.items():
            workers[name] = stack.enter_context(closing(Worker(*trial.build)))
            found[name] = {"turns": []}
            ask(name, "start")
        for number in range(rounds):
            if number and perf_counter() > until:
                break
            for name in list(workers):
                ask(name, "turn")
        for name, question in [(n, q) for n in trials for q in trials[n].questions]:
            if name in workers:
                ask(name, question)
    return found
