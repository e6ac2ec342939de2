"""Reference and fast engine measured side by side: time, memory, operations, and where time goes.

Each is a process of its own; all of them take turns, so that a disturbance of the machine meets
them alike, and medians over the rounds are reported.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from itertools import product
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

Facts = dict[str, Any]

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
    for precision, tower, batch_size, count in product(precisions, towers, batch_sizes, classes):
        adapter = replace(ADAPTER, towers=TOWERS[tower])
        yield Setting(clip, adapter, tuple(map(tuple, prompts[:count])), batch_size, precision)


def measure(
    setting: Setting,
    machine: Machine,
    rounds: int,
    memory_bytes: int | None,
    with_reference: bool,
) -> Facts:
    """Measure one setting and return its entry in the JSON file.

    Args:
        setting: the setting of the training.
        machine: the device and the number of threads that compute.
        rounds: the number of turns that every process takes.
        memory_bytes: the memory that tensors of the fast engine may take; None means no chunks.
        with_reference: True if the reference engine is measured too.

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
            return stack.enter_context(closing(Worker(build, *arguments)))

        size, batch_size = setting.clip.image_size, setting.batch_size
        bare = start(Device, machine, setting.precision, size, batch_size)
        rates = [bare.ask("product_rate")]
        trials = {"fast": start(Training, machine, setting, "fast", chosen.chunks)}
        for name, reduced in _reductions(setting).items():
            trials[name] = start(Training, machine, reduced, "fast", chosen.chunks)
        losses = {}
        for name, worker in trials.items():
            losses[name] = worker.ask("step")
            worker.ask("step_seconds", WARM_UPS[device])
        with flop_counter() as counter:
            fake_step(setting, chosen.chunks)
        counted = {"fast": counter.get_total_flops()}
        if with_reference:
            # Last, so that it takes no memory from the others.
            worker = start(Training, machine, setting, "reference", Chunks())
            try:
                losses["reference"] = worker.ask("step")
                counted["reference"] = worker.ask("counted_flops")
                trials["reference"] = worker
            except OutOfMemory:
                worker.close()
        ran_out = with_reference and "reference" not in trials
        times: dict[str, list[float]] = {name: [] for name in trials}
        for _ in range(rounds):
            for name, worker in trials.items():
                times[name].append(worker.ask("step_seconds", steps))
            rates.append(bare.ask("product_rate"))
        engines = {
            name: figures(
                setting, times[name], trials[name].ask("peak_memory"), counted[name], losses[name]
            )
            for name in counted
        }
        parts = _parts({name: median(values) for name, values in times.items()}, trials, bare)
        if device == "cuda":  # which waits for kernels to be launched
            busy = trials["fast"].ask("busy_seconds", steps)
            parts["launch gaps"] = engines["fast"]["step_seconds"] - busy
        tests = trials["fast"].ask("test_seconds", TEST_BATCHES[device] * batch_size)
        return entry(setting, chosen, engines, ran_out, median(rates), parts, tests)


def describe(setting: Setting) -> Facts:
    """Return what a setting is, as JSON values."""
    return {
        "model": setting.clip.name,
        "classes": len(setting.prompts),
        "prompt_tokens": sum(map(len, set(setting.prompts))),
        "batch_size": setting.batch_size,
        "towers": list(setting.adapter.towers),
        "precision": setting.precision,
    }


def figures(
    setting: Setting, rounds: Sequence[float], peak_memory: int, flops: int, first_loss: float
) -> Facts:
    """Return what was measured of one engine, as JSON values.

    Args:
        setting: the setting of the training.
        rounds: the seconds per step of each round.
        peak_memory: bytes allocated on the GPU, or resident in the engine's process.
        flops: operations PyTorch counts in a step.
        first_loss: the loss of the first step, the same with either engine.
    """
    return {
        "step_seconds": median(rounds),
        "rounds_seconds": list(rounds),
        "images_per_second": setting.batch_size / median(rounds),
        "peak_memory_bytes": peak_memory,
        "flops_counted": flops,
        "first_loss": first_loss,
    }


def entry(
    setting: Setting,
    chosen: Plan,
    engines: Mapping[str, Facts],
    ran_out: bool,
    product_rate: float,
    parts: Mapping[str, float],
    test_seconds: tuple[float, float],
) -> Facts:
    """Return what was measured in one setting, as JSON values.

    Args:
        setting: the setting of the training.
        chosen: chunks of the fast engine and its planned memory.
        engines: the figures of the engine "fast", and of "reference" where it was measured.
        ran_out: True if the reference engine ran out of memory.
        product_rate: operations per second of a large matrix product.
        parts: seconds per step by part; empty where one tower is adapted.
        test_seconds: the seconds of encoding the prompts for tests, and of testing one image.
    """
    fast, reference = engines["fast"], engines.get("reference")
    flops = planned_flops(setting, chosen.chunks)
    classes, (test_prompts, test_image) = len(setting.prompts), test_seconds
    minutes = None
    if (classes, setting.batch_size) == (IMAGENET_CLASSES, IMAGENET_BATCH):
        steps = IMAGENET_STEPS * fast["step_seconds"]
        minutes = (steps + test_prompts + IMAGENET_TEST * test_image) / 60
    return {
        **describe(setting),
        "chunks": vars(chosen.chunks),
        "planned_memory_bytes": chosen.peak_bytes,
        "product_rate_flops": product_rate,
        "flops_formula": flops,
        "fast": fast,
        "fast_share_of_product_rate": flops / product_rate / fast["step_seconds"],
        "reference": reference,
        "reference_ran_out_of_memory": ran_out,
        "memory_share": reference and fast["peak_memory_bytes"] / reference["peak_memory_bytes"],
        "parts_seconds": dict(parts),
        "floor_seconds": flops / product_rate,
        "test_prompts_seconds": test_prompts,
        "test_image_seconds": test_image,
        "imagenet_minutes": minutes,
    }


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
