"""Reference and fast engine measured side by side: time, memory, operations, and where time goes.

Each is a process of its own; all of them take turns, so that a disturbance of the machine meets
them alike, and medians over the rounds are reported.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from blocklora.adapters.config import AdapterConfig
from blocklora.backbones.config import ClipConfig
from blocklora.backbones.prompts import class_prompts, tokenize
from blocklora.data.imagenet import read_classes
from blocklora.data.registry import PACKAGED
from blocklora.engine.fast import Chunks
from blocklora.engine.plan import Plan, Setting, fake_step, plan, planned_peak_bytes
from blocklora.performance.forecast import planned_flops
from blocklora.performance.machine import Machine
from blocklora.performance.trial import Device, Training
from blocklora.performance.worker import OutOfMemory, Worker
from blocklora.theory.counting import flop_counter

PROMPT = "a photo of a {}."
# That of the paper.
ADAPTER = AdapterConfig(
    rank=2,
    blocks=1,
    partition="rank",
    alpha=1.0,
    dropout=0.25,
    matrices=("q", "k", "v"),
    layers="all",
    towers=("vision", "text"),
)
TOWERS = {"both": ("vision", "text"), "vision": ("vision",), "text": ("text",)}
WARM_UPS = {"cpu": 1, "cuda": 5}
STEPS_PER_ROUND = {"cpu": 1, "cuda": 20}
TEST_BATCHES = {"cpu": 1, "cuda": 64}
# A training on ImageNet with 16 shots by the protocol, and its test.
IMAGENET_CLASSES, IMAGENET_BATCH, IMAGENET_STEPS, IMAGENET_TEST = 1000, 32, 8000, 50_000


@dataclass(frozen=True)
class EngineFigures:
    """What was measured of one engine.

    Attributes:
        rounds: seconds per step of each round.
        peak_memory_bytes: allocated on the GPU, or resident in the engine's process.
        counted_flops: operations PyTorch counts in a step.
        first_loss: of the first step, the same with either engine.
    """

    rounds: tuple[float, ...]
    peak_memory_bytes: int
    counted_flops: int
    first_loss: float

    @property
    def step_seconds(self) -> float:
        """The median over the rounds."""
        return median(self.rounds)


@dataclass(frozen=True)
class Measurement:
    """What was measured in one setting.

    Attributes:
        setting: of the training.
        plan: chunks of the fast engine and its planned memory.
        formula_flops: operations of a step by the closed formula.
        product_rate: operations per second of a large matrix product.
        fast: the fast engine.
        reference: the reference engine; None if it was not run or ran out of memory.
        reference_ran_out: whether the latter.
        parts: seconds per step by part; empty where one tower is adapted.
        test_seconds: of encoding the prompts for tests, and of testing one image.
    """

    setting: Setting
    plan: Plan
    formula_flops: int
    product_rate: float
    fast: EngineFigures
    reference: EngineFigures | None
    reference_ran_out: bool
    parts: Mapping[str, float]
    test_seconds: tuple[float, float]

    @property
    def kind(self) -> tuple[object, ...]:
        """All that its setting is but the classes."""
        return self.setting.adapter.towers, self.setting.batch_size, self.setting.precision

    @property
    def classes(self) -> int:
        """Of the setting."""
        return len(self.setting.prompts)

    @property
    def floor_seconds(self) -> float:
        """What a step would take at the rate of a large product."""
        return self.formula_flops / self.product_rate

    @property
    def imagenet_minutes(self) -> float | None:
        """What 16 shots of ImageNet and the test would take; None in other settings."""
        if (self.classes, self.setting.batch_size) != (IMAGENET_CLASSES, IMAGENET_BATCH):
            return None
        prompts, image = self.test_seconds
        return (IMAGENET_STEPS * self.fast.step_seconds + prompts + IMAGENET_TEST * image) / 60


def settings(
    clip: ClipConfig,
    classes: Sequence[int],
    batch_sizes: Sequence[int],
    towers: Sequence[str],
    precisions: Sequence[str],
) -> Iterator[Setting]:
    """Yield every combination; n classes have the first n of ImageNet's names."""
    names = list(read_classes(PACKAGED / "imagenet_classes.txt").values())
    prompts = tokenize(class_prompts(names, PROMPT), clip.context_length)
    for precision in precisions:
        for tower in towers:
            adapter = replace(ADAPTER, towers=TOWERS[tower])
            for batch_size in batch_sizes:
                for count in classes:
                    chosen = tuple(map(tuple, prompts[:count]))
                    yield Setting(clip, adapter, chosen, batch_size, precision)


def measure(
    setting: Setting,
    machine: Machine,
    rounds: int,
    memory_bytes: int | None,
    with_reference: bool,
) -> Measurement:
    """Measure one setting.

    Args:
        setting: of the training.
        machine: what computes.
        rounds: how often every process takes its turn.
        memory_bytes: what the tensors of the fast engine may take; None means no chunks.
        with_reference: whether the reference engine is measured too.

    Raises:
        UserError: the device cannot do it, or memory is too small for the fast engine.
    """
    if memory_bytes is None:
        chosen = Plan(Chunks(), planned_peak_bytes(setting, Chunks()))
    else:
        chosen = plan(setting, memory_bytes)
    device, steps = machine.device, STEPS_PER_ROUND[machine.device]
    with ExitStack() as stack:

        def start(build: Callable[..., Any], *arguments: Any) -> Worker:
            worker = Worker(build, *arguments)
            stack.callback(worker.close)
            return worker

        bare = start(
            Device, machine, setting.precision, setting.clip.image_size, setting.batch_size
        )
        rates = [bare.ask("product_rate")]
        trials = {"fast": start(Training, machine, setting, "fast", chosen.chunks)}
        for name, reduced in _reductions(setting).items():
            trials[name] = start(Training, machine, reduced, "fast", chosen.chunks)
        losses = {}
        for name, worker in trials.items():
            losses[name] = worker.ask("step")
            worker.ask("step_seconds", WARM_UPS[device])
        counted = {"fast": _counted_flops(setting, chosen.chunks)}
        ran_out = False
        if with_reference:
            # Last, so that it takes no memory from the others.
            worker = start(Training, machine, setting, "reference", Chunks())
            try:
                losses["reference"] = worker.ask("step")
                counted["reference"] = worker.ask("counted_flops")
                trials["reference"] = worker
            except OutOfMemory:
                ran_out = True
                worker.close()
        times: dict[str, list[float]] = {name: [] for name in trials}
        for _ in range(rounds):
            for name, worker in trials.items():
                times[name].append(worker.ask("step_seconds", steps))
            rates.append(bare.ask("product_rate"))
        figures = {
            name: EngineFigures(
                tuple(times[name]), trials[name].ask("peak_memory"), counted[name], losses[name]
            )
            for name in counted
        }
        return Measurement(
            setting=setting,
            plan=chosen,
            formula_flops=planned_flops(setting, chosen.chunks),
            product_rate=median(rates),
            fast=figures["fast"],
            reference=figures.get("reference"),
            reference_ran_out=ran_out,
            parts=_parts({name: median(values) for name, values in times.items()}, trials, bare)
            | _gaps(trials["fast"], figures["fast"].step_seconds, device),
            test_seconds=trials["fast"].ask(
                "test_seconds", TEST_BATCHES[device] * setting.batch_size
            ),
        )


def reference_seconds(found: Measurement, others: Sequence[Measurement]) -> float | None:
    """Return the reference engine's time of a step, measured or extrapolated.

    Where it was not measured, it is extrapolated linearly in the number of classes from the two
    largest settings of the same kind among `others` where it was; None if there are none.
    """
    if found.reference is not None:
        return found.reference.step_seconds
    known = sorted(
        (other.classes, other.reference.step_seconds)
        for other in others
        if other.kind == found.kind and other.reference is not None
    )
    if len(known) < 2:
        return None
    (few, short), (more, long) = known[-2:]
    return long + (long - short) / (more - few) * (found.classes - more)


def _reductions(setting: Setting) -> dict[str, Setting]:
    """Return the settings whose times, subtracted, tell the parts of a step.

    One low-rank path in the first layer of each tower makes gradients go through all of it.
    """
    if len(setting.adapter.towers) < 2:
        return {}
    least = replace(setting.adapter, rank=1, dropout=0.0, matrices=("q",), layers=(0, 0))
    return {
        "towers": replace(setting, adapter=least),
        "vision": replace(setting, adapter=replace(least, towers=("vision",))),
    }


def _parts(
    seconds: Mapping[str, float], trials: Mapping[str, Worker], bare: Worker
) -> dict[str, float]:
    if "towers" not in seconds:
        return {}
    optimizer = trials["fast"].ask("optimizer_seconds", 20)
    return {
        "vision tower": seconds["vision"] - optimizer,
        "text tower": seconds["towers"] - seconds["vision"],
        "adapter": seconds["fast"] - seconds["towers"],
        "optimizer": optimizer,
        "augmentation": bare.ask("augmentation_seconds"),
    }


def _gaps(fast: Worker, step_seconds: float, device: str) -> dict[str, float]:
    """Return the time of a step in which a GPU waits for kernels to be launched."""
    if device != "cuda":
        return {}
    return {"launch gaps": step_seconds - fast.ask("busy_seconds", STEPS_PER_ROUND[device])}


def _counted_flops(setting: Setting, chunks: Chunks) -> int:
    """Return the operations PyTorch counts in the fast engine's step, on fake tensors."""
    with flop_counter() as counter:
        fake_step(setting, chunks)
    return counter.get_total_flops()
