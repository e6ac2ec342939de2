"""Measures the fast engine and the reference: time, memory, operations, and the parts of a step.

Each engine runs in a process of its own. The processes take turns, so a disturbance of the machine
affects all of them, and the medians over the rounds are reported.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import replace
from itertools import product
from statistics import median
from typing import Any

from blocklora.adapters.config import AdapterConfig
from blocklora.backbones.prompts import class_prompts, tokenize
from blocklora.backbones.shape import ClipConfig
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
# The adapter of CLIP-LoRA, with the settings of its paper.
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
# By device: the steps before the first round, the steps in each round, and the batches of a test.
WARM_UPS = {"cpu": 1, "cuda": 5}
STEPS_PER_ROUND = {"cpu": 1, "cuda": 20}
TEST_BATCHES = {"cpu": 1, "cuda": 64}
# The training on ImageNet with 16 shots by the protocol, and the images of its test.
IMAGENET_CLASSES, IMAGENET_BATCH, IMAGENET_STEPS, IMAGENET_TEST = 1000, 32, 8000, 50_000


def settings(
    clip: ClipConfig,
    classes: Sequence[int],
    batch_sizes: Sequence[int],
    towers: Sequence[str],
    precisions: Sequence[str],
) -> Iterator[Setting]:
    """Yield the setting of every combination; its class names are the first ones of ImageNet.

    `towers` holds keys of `TOWERS`.
    """
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
    """Measure a setting, with all processes taking turns, and return its entry in the JSON file.

    Args:
        setting: The setting of the training.
        machine: The device and the number of threads.
        rounds: The number of turns of each process.
        memory_bytes: The memory that the tensors of the fast engine may take. If it is None, the
            engine encodes everything at once.
        with_reference: True to measure the reference engine as well.

    Raises:
        UserError: The device is not available or cannot compute in the precision, memory is too
            small for the fast engine, or a process has ended unexpectedly.
    """
    if memory_bytes is None:
        chosen = Plan(Chunks(), planned_peak_bytes(setting, Chunks()))
    else:
        chosen = plan(setting, memory_bytes)
    device, steps = machine.device, STEPS_PER_ROUND[machine.device]
    losses, trials = {}, {}
    with ExitStack() as stack:

        def start(*arguments: Any) -> Worker:
            return stack.enter_context(closing(Worker(*arguments)))

        size, batch_size = setting.clip.image_size, setting.batch_size
        bare = start(Device, machine, setting.precision, size, batch_size)
        rates = [bare.ask("product_rate")]
        for name, part in {"fast": setting, **_reductions(setting)}.items():
            worker = trials[name] = start(Training, machine, part, "fast", chosen.chunks)
            losses[name] = worker.ask("step")
            worker.ask("step_seconds", WARM_UPS[device])
        with flop_counter() as counter:
            fake_step(setting, chosen.chunks)
        counted = {"fast": counter.get_total_flops()}
        if with_reference:  # the last one, so that it takes no memory from the others
            worker = start(Training, machine, setting, "reference", Chunks())
            with suppress(OutOfMemory):
                losses["reference"] = worker.ask("step")
                counted["reference"] = worker.ask("counted_flops")
                trials["reference"] = worker
        times: dict[str, list[float]] = {name: [] for name in trials}
        for _ in range(rounds):
            for name, worker in trials.items():
                times[name].append(worker.ask("step_seconds", steps))
            rates.append(bare.ask("product_rate"))
        engines = {}
        for name, flops in counted.items():
            peak = trials[name].ask("peak_memory")
            engines[name] = figures(setting, times[name], peak, flops, losses[name])
        parts = _parts({name: median(values) for name, values in times.items()}, trials, bare)
        if device == "cuda":  # where the GPU may wait for kernels to be launched
            busy = trials["fast"].ask("busy_seconds", steps)
            parts["launch gaps"] = engines["fast"]["step_seconds"] - busy
        tests = trials["fast"].ask("test_seconds", TEST_BATCHES[device] * batch_size)
        ran_out = with_reference and "reference" not in trials
        return entry(setting, chosen, engines, ran_out, median(rates), parts, tests)


def describe(setting: Setting) -> Facts:
    """Return the setting as a JSON-serialisable dictionary."""
    return {
        "model": setting.clip.name,
        "classes": len(setting.prompts),
        "prompt_tokens": sum(map(len, set(setting.prompts))),
        "batch_size": setting.batch_size,
        "towers": list(setting.adapter.towers),
        "precision": setting.precision,
    }


def setting_name(entry: Facts) -> str:
    """Return the setting of an entry, such as "50 classes, batch 8, vision and text, fp32"."""
    towers = " and ".join(entry["towers"])
    return (
        f"{entry['classes']} classes, batch {entry['batch_size']}, {towers}, {entry['precision']}"
    )


def figures(
    setting: Setting, rounds: Sequence[float], peak_memory: int, flops: int, first_loss: float
) -> Facts:
    """Return the measurements of one engine as a JSON-serialisable dictionary.

    `rounds` are the seconds per step in each round, `peak_memory` the bytes allocated on the GPU or
    resident in the process, `flops` the operations that PyTorch counts in a step, and `first_loss`
    the loss of the first step, which should be the same for both engines.
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
    """Return the measurements in one setting as a JSON-serialisable dictionary.

    Args:
        setting: The setting of the training.
        chosen: The plan of the fast engine.
        engines: The figures of the engine "fast" and, if it was measured, of "reference".
        ran_out: True if the reference engine ran out of memory.
        product_rate: Operations per second of a large matrix product.
        parts: Seconds per step by part. If only one tower is adapted, no part but the launch gaps
            of a GPU is known.
        test_seconds: The seconds for preparing a test, and for testing one image.
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
    """Return smaller settings by name; the differences between their times give those of parts.

    Each adapted tower has a single low-rank path, in its first layer, so that the gradients still
    pass through the whole tower. There are no such settings if only one tower is adapted.
    """
    if len(setting.adapter.towers) < 2:
        return {}
    least = replace(setting.adapter, rank=1, dropout=0.0, matrices=("q",), layers=(0, 0))
    vision = replace(least, towers=("vision",))
    return {"towers": replace(setting, adapter=least), "vision": replace(setting, adapter=vision)}


def _parts(
    seconds: Mapping[str, float], trials: Mapping[str, Worker], bare: Worker
) -> dict[str, float]:
    """Return the seconds of the parts of a step, or nothing if only one tower is adapted.

    `seconds` holds the time of a step of each trial.
    """
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
