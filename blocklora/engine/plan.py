"""Splitting a training step into chunks if it would need too much memory."""

import logging
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from blocklora.engine.fast import Chunks
from blocklora.engine.memory import free_bytes, is_out_of_memory, release_memory
from blocklora.engine.needs import Setting, planned_peak_bytes
from blocklora.errors import UserError

MIB = 2**20
USABLE_SHARE = 0.85  # leaves room for the device's context and for gaps between tensors

Result = TypeVar("Result")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """The chunks in which to encode, and the peak memory in bytes that a training then needs."""

    chunks: Chunks
    peak_bytes: int


def plan(setting: Setting, budget_bytes: int) -> Plan:
    """Return the plan with the largest chunks that fit into `budget_bytes` of the allocator.

    Raises:
        UserError: Not even the smallest chunks fit.
    """

    def fits(chunks: Chunks) -> bool:
        return planned_peak_bytes(setting, chunks) <= budget_bytes

    options = list(candidates(setting))
    # Options are sorted by size, so a binary search works, but usually the first one fits.
    chosen = 0
    if not fits(options[0]):
        chosen = bisect_left(options, True, 1, len(options) - 1, key=fits)
    peak = planned_peak_bytes(setting, options[chosen])
    if peak > budget_bytes:
        raise _never_fits(setting, peak, budget_bytes)
    return Plan(options[chosen], peak)


def candidates(setting: Setting) -> Iterator[Chunks]:
    """Yield chunks from the fastest to the smallest.

    All chunks but the last are encoded twice, so chunks shrink in small steps. Prompts are split
    before images, because the text tower is narrower and saving a byte there costs less arithmetic.
    (A tower without an adapter needs memory as well, but encodes each chunk only once.)
    """
    yield Chunks()
    lengths = [len(prompt) for prompt in set(setting.prompts)]
    total, longest = sum(lengths), max(lengths)
    for tokens in _shares(total, longest):
        yield Chunks(tokens=tokens)
    for images in _shares(setting.batch_size, 1):
        yield Chunks(tokens=tokens, images=images)
    yield Chunks(tokens=max(total // 32, longest), images=1)


def _shares(total: int, least: int) -> list[int]:
    """Return 7/8, 6/8, …, 1/8 of `total`, but at least `least`, without repetition."""
    return sorted({max(least, total * eighths // 8) for eighths in range(1, 8)}, reverse=True)


def train_within_memory(
    setting: Setting, device: str, attempt: Callable[[Chunks], Result], known: Plan | None = None
) -> tuple[Result, Plan | None]:
    """Return the result of `attempt` with chunks that fit the device, and their plan.

    On a GPU, the chunks depend on the free memory. On a CPU, everything is encoded at once and
    nothing is planned, because free memory varies there and chunks change the last digits of the
    results. If memory runs out, `attempt` is called a second time with smaller chunks.

    Args:
        setting: Everything that the memory of a step depends on.
        device: "cpu" or "cuda".
        attempt: Trains with the given chunks, from the first step or from a checkpoint.
        known: The plan of an earlier training with this setting on this device, if there is one.

    Raises:
        UserError: No chunks fit, or memory runs out twice.
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
    # This is outside the `except` block, because the error keeps the attempt's tensors alive.
    release_memory(device)
    tried = chosen or Plan(Chunks(), planned_peak_bytes(setting, Chunks()))
    smaller = next_smaller(setting, tried)
    logger.warning(
        "out of memory with %s (planned %.1f MiB): %s; trying again with %s (planned %.1f MiB)",
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
    raise _never_fits(setting, smaller.peak_bytes, free_bytes(device))


def next_smaller(setting: Setting, tried: Plan) -> Plan:
    """Return the plan to try after memory ran out with `tried`.

    Compared with `tried`, its chunks are the largest that save at least a quarter of the bytes that
    the smallest chunks would save.
    """
    smallest = list(candidates(setting))[-1]
    floor = planned_peak_bytes(setting, smallest)
    budget = floor + (tried.peak_bytes - floor) * 3 // 4
    return plan(setting, budget)


def _never_fits(setting: Setting, needed: int, usable: int) -> UserError:
    return UserError(
        f"{setting.clip.name} with {len(setting.prompts)} classes and batches of "
        f"{setting.batch_size} images in {setting.precision} needs {needed / MIB:.1f} MiB even "
        f"in small chunks, but only {usable / MIB:.1f} MiB are usable; use a device with more "
        "memory, a smaller batch_size in the study or, on a GPU, precision fp16"
    )
