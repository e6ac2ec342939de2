"""How much memory a training step needs, and how to cut it where that is too much.

The fast engine runs a step on fake tensors, which have shapes and no data, while the bytes of
every tensor are counted. The step is the one that will be run, so the count follows the code.
"""

import logging
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import TypeVar

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from blocklora.adapters.adapter import Adapter
from blocklora.adapters.config import AdapterConfig
from blocklora.backbones.config import ClipConfig
from blocklora.backbones.model import Backbone, tensor_shapes
from blocklora.engine.fast import Chunks, FastEngine
from blocklora.engine.memory import TensorMemory, free_bytes, is_out_of_memory, release_memory
from blocklora.errors import UserError

MIB = 2**20
# The rest is for the device's context, the allocator's rounding and the tests of a run.
USABLE_SHARE = 0.85

Result = TypeVar("Result")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Setting:
    """What the memory of a step depends on.

    Attributes:
        clip: shape of the model.
        adapter: the adapter that is trained.
        prompts: token ids of each class prompt.
        batch_size: images per step.
        precision: one of `PRECISIONS`.
    """

    clip: ClipConfig
    adapter: AdapterConfig
    prompts: tuple[tuple[int, ...], ...]
    batch_size: int
    precision: str


@dataclass(frozen=True)
class Plan:
    """Chunks to encode in, and the bytes of tensors a step then needs at its peak."""

    chunks: Chunks
    peak_bytes: int


def fake_step(setting: Setting, chunks: Chunks) -> int:
    """Do a training step on fake tensors; return the most bytes of tensors alive at a time.

    Counted are the frozen weights in the compute dtype, adapter, gradients, optimizer state,
    batch, masks and activations; not the device's context nor what an allocator rounds up.
    """
    with FakeTensorMode(allow_non_fake_inputs=True):
        clip = setting.clip
        weights = {name: torch.empty(shape) for name, shape in tensor_shapes(clip).items()}
        adapter = Adapter.initialise(setting.adapter, clip.tower_shapes, torch.Generator())
        engine = FastEngine(
            Backbone(clip, weights, ""),
            adapter,
            setting.prompts,
            logit_scale=100.0,
            seed=0,
            precision=setting.precision,
            chunks=chunks,
        )
        moments = [torch.empty_like(p) for p in adapter.parameters() for _ in range(2)]
        size = clip.image_size
        images = torch.empty(setting.batch_size, size, size, 3, dtype=torch.uint8)
        labels = torch.empty(setting.batch_size, dtype=torch.long)
        with TensorMemory([*held_tensors(engine), *moments, images, labels]) as memory:
            engine.step(images, labels, 0, torch.amp.GradScaler("cpu", enabled=False))
        return memory.peak_bytes


@cache
def planned_peak_bytes(setting: Setting, chunks: Chunks) -> int:
    """Return what `fake_step` does, which is done once for each setting."""
    return fake_step(setting, chunks)


def plan(setting: Setting, budget_bytes: int) -> Plan:
    """Return the largest chunks with which a step fits `budget_bytes`.

    Raises:
        UserError: not even the smallest do.
    """

    def fits(chunks: Chunks) -> bool:
        return planned_peak_bytes(setting, chunks) <= budget_bytes

    options = list(candidates(setting))
    # Options get smaller, so what fits is found by halving; mostly it is the first.
    chosen = 0
    if not fits(options[0]):
        chosen = bisect_left(options, True, 1, len(options) - 1, key=fits)
    peak = planned_peak_bytes(setting, options[chosen])
    if peak > budget_bytes:
        raise _never_fits(setting, peak, budget_bytes)
    return Plan(options[chosen], peak)


def candidates(setting: Setting) -> Iterator[Chunks]:
    """Yield chunks from the fastest to the smallest.

    What does not fit in the last chunk is encoded again, so chunks shrink slowly. Prompts are cut
    before images: their tower is narrower, so that a byte saved costs less arithmetic.
    """
    yield Chunks()
    tokens = total = None
    if "text" in setting.adapter.towers:
        lengths = [len(prompt) for prompt in set(setting.prompts)]
        total, longest = sum(lengths), max(lengths)
        for tokens in _shares(total, longest):
            yield Chunks(tokens=tokens)
    if "vision" in setting.adapter.towers:
        for images in _shares(setting.batch_size, 1):
            yield Chunks(tokens=tokens, images=images)
        yield Chunks(tokens=total and max(longest, total // 32), images=1)


def _shares(total: int, least: int) -> list[int]:
    """Return seven to one eighths of `total`, at least `least`, without repetition."""
    return sorted({max(least, total * eighths // 8) for eighths in range(1, 8)}, reverse=True)


def train_within_memory(
    setting: Setting,
    device: str,
    attempt: Callable[[Chunks], Result],
    known: Plan | None = None,
) -> tuple[Result, Plan | None]:
    """Return the result of `attempt` with chunks that fit the device, and their plan.

    On a GPU the chunks follow from the memory that is free. What is free on a CPU differs from
    call to call, and chunks change the last digits of results, so there everything is encoded at
    once and nothing is planned. If memory runs out, `attempt` is called once more with smaller
    chunks.

    Args:
        setting: the setting of the training.
        device: "cpu" or "cuda".
        attempt: trains from the start, or from its checkpoint, with the given chunks.
        known: a plan by which this setting was trained before on the device.

    Raises:
        UserError: no chunks fit, or memory runs out twice.
    """
    chosen = known
    if chosen is None and device == "cuda":
        chosen = plan(setting, int(USABLE_SHARE * free_bytes(device)))
    try:
        return attempt(chosen.chunks if chosen else Chunks()), chosen
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        message = str(error).partition("\n")[0]
    # Only here, where the error and with it the tensors of the attempt are gone.
    release_memory(device)
    tried = chosen or Plan(Chunks(), planned_peak_bytes(setting, Chunks()))
    smaller = next_smaller(setting, tried)
    logger.warning(
        "out of memory with %s (planned %.1f MiB): %s; once more with %s (planned %.1f MiB)",
        tried.chunks,
        tried.peak_bytes / MIB,
        message,
        smaller.chunks,
        smaller.peak_bytes / MIB,
    )
    try:
        return attempt(smaller.chunks), smaller
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise _never_fits(setting, smaller.peak_bytes, free_bytes(device)) from None


def next_smaller(setting: Setting, tried: Plan) -> Plan:
    """Return a plan that needs at most three quarters of the activations of `tried`.

    It is the smallest plan there is where no other does.
    """
    smallest = list(candidates(setting))[-1]
    floor = planned_peak_bytes(setting, smallest)
    budget = floor + (tried.peak_bytes - floor) * 3 // 4
    return plan(setting, budget)


def held_tensors(value: object) -> Iterator[Tensor]:
    """Yield the tensors that an object of this package keeps, at any depth."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from held_tensors(list(value.values()))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from held_tensors(item)
    elif type(value).__module__.startswith("blocklora.") and hasattr(value, "__dict__"):
        yield from held_tensors(vars(value))


def _never_fits(setting: Setting, needed: int, there: int) -> UserError:
    return UserError(
        f"{setting.clip.name} with {len(setting.prompts)} classes and batches of "
        f"{setting.batch_size} images in {setting.precision} needs {needed / MIB:.1f} MiB even "
        f"in small chunks, and {there / MIB:.1f} MiB are usable; use a larger GPU, a smaller "
        "batch_size, or precision bf16 or fp16"
    )
