"""The memory that a training step on a GPU needs, known before anything is allocated there.

The count cannot become outdated, because the engine's own code makes it. A whole step of a large
model in many chunks has tens of thousands of operations, which take minutes even on tensors
without data. Therefore each tower's part of a step is run a few times with a handful of short
sequences. It does the same operations for any sizes, and the bytes of each tensor are a linear
function of the numbers of tokens and of sequences. So these runs give the bytes of each tensor, and
with them the peak, for all sizes.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from blocklora.adapters.adapter import Adapter
from blocklora.adapters.config import AdapterConfig
from blocklora.backbones.model import Backbone, tensor_shapes
from blocklora.backbones.shape import ClipConfig
from blocklora.engine.fast import Chunks, FastEngine, chunk_sizes, classification_loss
from blocklora.engine.memory import TensorMemory
from blocklora.engine.packing import pack

aten = torch.ops.aten

# Multiples to which PyTorch's allocator rounds up the bytes of tensors, and of large ones.
ROUNDING, LARGE_ROUNDING, LARGE = 512, 2 * 2**20, 10 * 2**20
# cuBLAS keeps 32 MiB on Hopper, and less on other GPUs, for each thread and stream that calls it.
# The forward and the backward pass have threads of their own.
PRODUCT_WORKSPACE = 32 * 2**20
# The backward pass of attention adds up gradients of queries in fp32, in tiles of so many queries:
# those of flash attention in 16 bits, and of memory-efficient attention in 32.
QUERY_TILE, QUERY_TILE_FP32 = 128, 64


@dataclass(frozen=True)
class Setting:
    """Everything that the memory of a step depends on; `prompts` are token ids by class."""

    clip: ClipConfig
    adapter: AdapterConfig
    prompts: tuple[tuple[int, ...], ...]
    batch_size: int
    precision: str


@dataclass(frozen=True)
class Phases:
    """The bytes that a tower's part of a step needs in addition to what was there before.

    Attributes:
        forward: The peak in the forward pass.
        kept: What is there after the forward pass.
        backward: The peak in the backward pass, which begins with what is kept.
        left: What is there after the backward pass.
    """

    forward: int
    kept: int
    backward: int
    left: int


@dataclass(frozen=True)
class Timeline:
    """The tensors of a tower's part of a step, numbered in the order of their allocation.

    Attributes:
        coefficients: The bytes of each tensor for each token, each sequence and so on, and
            independently of these sizes, float64 (tensors, sizes + 1).
        events: The number of each tensor that is allocated, or its bitwise complement where the
            tensor is released, int64 (events,).
        forward: The number of events in the forward pass.
    """

    coefficients: np.ndarray
    events: np.ndarray
    forward: int

    def phases(self, sizes: Sequence[int], rounded: bool) -> Phases:
        """Return the bytes of each phase; `_timeline` says what the sizes are.

        If `rounded`, a tensor takes as many bytes as PyTorch's allocator gives it on a GPU.
        """
        size = (self.coefficients @ [*sizes, 1]).round().astype(np.int64).clip(0)
        if rounded:
            unit = np.where(size < LARGE, ROUNDING, LARGE_ROUNDING)
            size = -(-size // unit) * unit
        released = self.events < 0
        changes = np.where(released, -1, 1) * size[np.where(released, ~self.events, self.events)]
        live = np.concatenate([[0], changes.cumsum()])
        forward, backward = live[: self.forward + 1], live[self.forward :]
        return Phases(*map(int, (forward.max(), forward[-1], backward.max(), backward[-1])))


def planned_peak_bytes(setting: Setting, chunks: Chunks) -> int:
    """Return the peak of the bytes that PyTorch's allocator holds on a GPU during a training.

    These are the tensors of a step (`tensor_bytes`, rounded up), the places from and to which a
    recorded step copies its inputs and outputs, and the workspaces of products and attention.
    """
    places = _batch_bytes(setting) + _parameter_bytes(setting)
    # Prompts that are encoded only once are so on another stream than the steps.
    callers = 2 if "text" in setting.adapter.towers else 3
    workspaces = callers * PRODUCT_WORKSPACE + _attention_workspace(setting, chunks)
    return tensor_bytes(setting, chunks, rounded=True) + 2 * places + workspaces


@cache
def tensor_bytes(setting: Setting, chunks: Chunks, rounded: bool = False) -> int:
    """Return the peak of the bytes of all tensors: what `counted_bytes` counts, or little more.

    If `rounded`, a tensor takes as many bytes as PyTorch's allocator gives it on a GPU.
    """
    packed, _ = pack(setting.prompts, chunks.tokens)
    classes, images = len(setting.prompts), setting.batch_size
    tokens, prompts = zip(*((len(c.tokens), len(c.ends)) for c in packed), strict=True)
    # Classes with equal prompts share a sequence, but each has its own row of the features.
    shared = classes - sum(prompts)
    text = _phases(setting, "text", tokens, (*prompts[:-1], prompts[-1] + shared), rounded)
    each, parts = setting.clip.vision_tokens, chunk_sizes(images, chunks.images)
    vision = _phases(setting, "vision", [each * part for part in parts], parts, rounded)
    loss = _loss_bytes(images, classes, setting.clip.embed_dim)
    start = _constant_bytes(setting.clip, setting.adapter, setting.precision) + _batch_bytes(
        setting
    )
    start += sum(tokens) * (4 * setting.clip.text.width + 16) + 8 * sum(prompts) + 8 * classes
    start += 16  # the keys of the masks
    peak = start + text.forward
    if "text" not in setting.adapter.towers:  # then the prompts are encoded before the first step
        text = Phases(text.kept, text.kept, text.kept, text.kept)
    if rounded:  # a GPU makes the masks of all layers from two tensors of their size
        text_masks, vision_masks = (
            2 * _mask_bytes(setting, tower, count)
            for tower, count in (("text", sum(tokens)), ("vision", each * images))
        )
        peak = max(peak, start + vision_masks, start + vision.kept + text_masks)
    return max(
        peak,
        start + vision.forward,
        start + vision.kept + text.forward,
        start + vision.kept + max(text.kept, text.backward) + loss,
        start + text.left + max(vision.kept, vision.backward) + loss,
    )


def counted_bytes(
    setting: Setting, chunks: Chunks, counter: AbstractContextManager[Any] | None = None
) -> int:
    """Run a whole step on fake tensors and return the peak of the bytes of all tensors.

    They are the frozen weights in the compute dtype, adapter, gradients, optimizer state, prompts,
    batch, masks and activations. If the text tower has no adapter, its one pass over the prompts
    counts as well. `counter` is entered for the step alone, for example to count its operations.
    """
    with FakeTensorMode(allow_non_fake_inputs=True), TensorMemory() as memory:
        engine = _engine(setting, chunks, _empty_weights(setting.clip))
        _moments = [torch.empty_like(p) for p in engine.adapter.parameters() for _ in range(2)]
        size = setting.clip.image_size
        images = torch.empty(setting.batch_size, size, size, 3, dtype=torch.uint8)
        labels = torch.empty(setting.batch_size, dtype=torch.long)
        memory.peak_bytes = memory.live_bytes
        if engine.fixed_text is not None:
            with torch.no_grad():
                engine._encode_text(None)
        with counter or nullcontext():
            engine.step(images, labels, 0, torch.amp.GradScaler("cpu", enabled=False))
    return memory.peak_bytes


def _phases(
    setting: Setting, tower: str, tokens: Sequence[int], sequences: Sequence[int], rounded: bool
) -> Phases:
    """Return the phases of a tower with so many tokens and sequences in each chunk."""
    chunked = len(tokens) > 1
    timeline = _timeline(setting.clip, setting.adapter, setting.precision, tower, chunked)
    largest = (max(tokens), max(sequences)) if chunked else ()
    return timeline.phases((*largest, sum(tokens), sum(sequences)), rounded)


@cache
def _timeline(
    clip: ClipConfig, adapter: AdapterConfig, precision: str, tower: str, chunked: bool
) -> Timeline:
    """Return the timeline of a tower's part of a step.

    Its sizes are the numbers of all tokens and of all sequences. If `chunked`, those in the largest
    chunk come first.
    """
    # The sequences in a chunk, the size of a sequence, and the number of chunks.
    runs = [(4, 2, 1), (5, 2, 1), (4, 3, 1)]
    if chunked:
        runs = [(4, 2, 3), (5, 2, 3), (4, 3, 3), (4, 2, 4), (4, 3, 4)]
    sizes, found = [], []
    for run in runs:
        with _one_thread():
            tokens, *facts = _run(clip, adapter, precision, tower, *run)
        largest = [tokens, run[0]] if chunked else []
        sizes.append([*largest, tokens * run[2], run[0] * run[2], 1])
        found.append(facts)
    (_, events, forward), *others = found
    assert all(other[1:] == [events, forward] for other in others), "operations depend on sizes"
    coefficients = np.linalg.solve(np.array(sizes, float), np.array([sized for sized, *_ in found]))
    return Timeline(coefficients.T, np.array(events), forward)


def _run(
    clip: ClipConfig,
    adapter: AdapterConfig,
    precision: str,
    tower: str,
    sequences: int,
    size: int,
    chunks: int,
) -> tuple[int, list[int], list[int], int]:
    """Run a tower's part of a step on equal chunks of so many sequences.

    Images are `size` patches high and wide. Prompts have `size` tokens, or one more, because a
    single group of equally long prompts would lead to other operations.

    Returns:
        The number of tokens of a chunk, the bytes of each tensor, the events, and the number of
        events in the forward pass.
    """
    adapted = tower in adapter.towers
    # The other tower only has to be there.
    other = {"text": "vision", "vision": "text"}[tower]
    clip = replace(clip, image_size=size * clip.patch_size)
    clip = replace(clip, **{other: replace(getattr(clip, other), layers=1)})
    adapter = replace(adapter, towers=(tower,) if adapted else ())
    lengths = [size, *[size + 1] * (sequences - 2), size]
    prompts = tuple((number, *[0] * (length - 1)) for number, length in enumerate(lengths))
    setting = Setting(clip, adapter, prompts, chunks * sequences, precision)
    images_per_chunk = sequences if chunks > 1 else None
    with TensorMemory() as memory, _NoProducts():
        weights = _shared_weights(clip)
        engine = _engine(setting, Chunks(images=images_per_chunk), weights, _RepeatingEngine)
        engine.chunks, engine.embedded = engine.chunks * chunks, engine.embedded * chunks
        engine.rows = torch.arange(chunks * sequences)
        shape = (setting.batch_size, clip.image_size, clip.image_size, 3)
        images = torch.zeros(shape, dtype=torch.uint8)
        key = engine._key(getattr(engine, tower), 0)
        memory.forget()
        with nullcontext() if adapted else torch.no_grad():
            if tower == "vision":
                features = engine._encode_images(images, key)
            else:
                features = engine._encode_text(key)
        forward = len(memory.events)
        if adapted:
            gradient = torch.ones_like(features)
            _gradients = torch.autograd.grad(features, engine.adapter.parameters(), gradient)
            del features, gradient
        tokens = sequences * clip.vision_tokens if tower == "vision" else sum(lengths)
        return tokens, list(memory.sizes), list(memory.events), forward


class _NoProducts(TorchDispatchMode):
    """A context in which matrix products are zeros, because CPUs are slow in 16 bits."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kind, operands = func.overloadpacket, [x for x in args if isinstance(x, Tensor)]
        if kind is aten.addmm_:
            return args[0]
        if kind in (aten.mm, aten.bmm, aten.addmm):
            left, right = operands[-2:]
            return left.new_zeros(*left.shape[:-1], right.shape[-1])
        if kind.__name__ == "_linear_pointwise":  # oneDNN's product, which CPUs take
            x, weight = operands[:2]
            return x.new_zeros(*x.shape[:-1], weight.shape[0])
        return func(*args, **(kwargs or {}))


class _RepeatingEngine(FastEngine):
    """An engine that encodes only one of the chunks that are encoded again.

    The others need the same memory at other times. Their features are all that they leave.
    """

    def _encode_again(self, tower: Any, chunks: Sequence[tuple[Any, ...]]) -> list[Tensor]:
        *others, last = [None, *chunks]
        if last is None:
            return []
        (features,) = super()._encode_again(tower, [last])
        return [features.new_zeros((len(others) - 1) * len(features), features.shape[1]), features]


@contextmanager
def _one_thread() -> Iterator[None]:
    """Compute with one thread, as several would spend their time waiting for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _engine(
    setting: Setting,
    chunks: Chunks,
    weights: dict[str, Tensor],
    kind: type[FastEngine] = FastEngine,
) -> FastEngine:
    """Return an engine that keeps only what it needs of the weights."""
    adapter = Adapter.initialise(setting.adapter, setting.clip.tower_shapes, torch.Generator())
    return kind(
        Backbone(setting.clip, weights, ""),
        adapter,
        setting.prompts,
        logit_scale=100.0,
        seed=0,
        precision=setting.precision,
        chunks=chunks,
    )


def _empty_weights(clip: ClipConfig) -> dict[str, Tensor]:
    return {name: torch.empty(shape) for name, shape in tensor_shapes(clip).items()}


def _shared_weights(clip: ClipConfig) -> dict[str, Tensor]:
    """Return weights of any values, which all layers of a tower share."""
    shapes = tensor_shapes(clip)
    kinds = {name: re.sub(r"\.\d+\.", ".", name) for name in shapes}
    shared = {kinds[name]: torch.empty(shape) for name, shape in shapes.items()}
    return {name: shared[kind] for name, kind in kinds.items()}


def _mask_bytes(setting: Setting, tower: str, tokens: int) -> int:
    """Return the bytes of a tower's dropout masks."""
    if tower not in setting.adapter.towers or setting.adapter.dropout == 0:
        return 0
    shape = getattr(setting.clip, tower)
    first, last = setting.adapter.adapted_layers(shape.layers, tower)
    return (last - first + 1) * tokens * shape.width


def _batch_bytes(setting: Setting) -> int:
    """Return the bytes of a batch of images and labels."""
    return setting.batch_size * (3 * setting.clip.image_size**2 + 8)


def _parameter_bytes(setting: Setting) -> int:
    """Return the bytes of the adapter's parameters, which are those of their gradients as well."""
    with FakeTensorMode():
        shapes = setting.clip.tower_shapes
        adapter = Adapter.initialise(setting.adapter, shapes, torch.Generator())
    return sum(parameter.nbytes for parameter in adapter.parameters())


def _attention_workspace(setting: Setting, chunks: Chunks) -> int:
    """Return the most bytes for gradients of queries in the backward pass of an attention."""
    clip, groups = setting.clip, []
    if "text" in setting.adapter.towers:
        packed, _ = pack(setting.prompts, chunks.tokens)
        groups += [(*group, clip.text.width) for chunk in packed for group in chunk.groups]
    if "vision" in setting.adapter.towers:
        images = min(chunks.images or setting.batch_size, setting.batch_size)
        groups.append((images, clip.vision_tokens, clip.vision.width))
    tile = QUERY_TILE_FP32 if setting.precision == "fp32" else QUERY_TILE
    return 4 * tile * max(count * -(-length // tile) * width for count, length, width in groups)


@cache
def _constant_bytes(clip: ClipConfig, adapter: AdapterConfig, precision: str) -> int:
    """Return the bytes of weights, adapter and optimizer state."""
    setting = Setting(clip, adapter, ((0, 1),), 1, precision)
    with FakeTensorMode(allow_non_fake_inputs=True), TensorMemory() as memory:
        engine = _engine(setting, Chunks(), _empty_weights(clip))
        prompts = [engine.fixed_text, engine.rows, *engine.embedded, *map(vars, engine.chunks)]
        storages = {x.untyped_storage() for x in tree_leaves(prompts) if isinstance(x, Tensor)}
        live = memory.live_bytes - sum(storage.nbytes() for storage in storages)
        return live + 2 * sum(parameter.nbytes for parameter in engine.adapter.parameters())


@cache
def _loss_bytes(images: int, classes: int, width: int) -> int:
    """Return the peak of the bytes for the loss and its gradients, apart from the features."""
    with FakeTensorMode(), TensorMemory() as memory:
        features = [torch.empty(count, width, requires_grad=True) for count in (images, classes)]
        labels = torch.empty(images, dtype=torch.long)
        memory.peak_bytes = before = memory.live_bytes
        loss, _ = classification_loss(*features, labels, 100.0)
        torch.autograd.grad(loss, features)
    return memory.peak_bytes - before
