"""How much memory a training step needs, and how to cut it where that is too much.

The fast engine runs a step on fake tensors, which have shapes and no data, while the bytes of
every tensor are counted. The step is the one that will be run, so the count follows the code.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from blocklora.adapters.adapter import Adapter
from blocklora.adapters.config import AdapterConfig
from blocklora.clip.config import ClipConfig
from blocklora.clip.weights import Backbone
from blocklora.errors import UserError
from blocklora.training.engine import Chunks, FastEngine
from blocklora.training.memory import TensorMemory

MIB = 2**20


@dataclass(frozen=True)
class Setting:
    """What the memory of a step depends on.

    Attributes:
        clip: shape of the model.
        adapter: what is trained.
        prompts: token ids of each class prompt.
        batch_size: images per step.
        precision: "fp32", "bf16" or "fp16".
    """

    clip: ClipConfig
    adapter: AdapterConfig
    prompts: Sequence[Sequence[int]]
    batch_size: int
    precision: str


@dataclass(frozen=True)
class Plan:
    """Chunks to encode in, and the bytes of tensors a step then needs at its peak."""

    chunks: Chunks
    peak_bytes: int


def planned_peak_bytes(setting: Setting, chunks: Chunks) -> int:
    """Return the most bytes of tensors alive at a time during a training step.

    Counted are the frozen weights in the compute dtype, adapter, gradients, optimizer state,
    batch, masks and activations; not the device's context nor what an allocator rounds up.
    """
    with FakeTensorMode(allow_non_fake_inputs=True):
        clip = setting.clip
        weights = {name: torch.empty(shape) for name, shape in weight_shapes(clip)}
        shapes = {t: (getattr(clip, t).layers, getattr(clip, t).width) for t in ("vision", "text")}
        adapter = Adapter.initialise(setting.adapter, shapes, torch.Generator())
        parameters = adapter.parameters()
        engine = FastEngine(
            Backbone(clip, weights, ""),
            adapter,
            setting.prompts,
            logit_scale=100.0,
            seed=0,
            precision=setting.precision,
            chunks=chunks,
        )
        moments = [torch.empty_like(p) for p in parameters for _ in range(2)]
        size = clip.image_size
        images = torch.empty(setting.batch_size, size, size, 3, dtype=torch.uint8)
        labels = torch.empty(setting.batch_size, dtype=torch.long)
        present = [*held_tensors(engine), *parameters, *moments, images, labels]
        with TensorMemory(present) as memory:
            engine.step(images, labels, 0, torch.amp.GradScaler("cpu", enabled=False))
        return memory.peak_bytes


def plan(setting: Setting, budget_bytes: int) -> Plan:
    """Return the largest chunks with which a step fits `budget_bytes`.

    Raises:
        UserError: even one image and one prompt at a time do not fit.
    """
    smallest = 0
    for chunks in candidates(setting):
        peak = planned_peak_bytes(setting, chunks)
        if peak <= budget_bytes:
            return Plan(chunks, peak)
        smallest = peak
    raise UserError(
        f"{setting.clip.name} with {len(setting.prompts)} classes and batches of "
        f"{setting.batch_size} images in {setting.precision} needs {smallest / MIB:.0f} MiB even "
        f"in the smallest chunks, more than the {budget_bytes / MIB:.0f} MiB there are; use a "
        "larger GPU, a smaller batch_size, or precision bf16 or fp16"
    )


def candidates(setting: Setting) -> Iterator[Chunks]:
    """Yield chunkings from the fastest to the smallest.

    Recomputation costs the same however many chunks there are, so the tower with more tokens is
    cut first, in halves, and both are when that is not enough.
    """
    yield Chunks()
    tokens = sum(len(prompt) for prompt in set(map(tuple, setting.prompts)))
    longest = max(len(prompt) for prompt in setting.prompts)
    images, halves = setting.batch_size, 1
    while tokens // 2**halves >= longest or images // 2**halves >= 1:
        text = max(longest, tokens // 2**halves)
        yield Chunks(tokens=text)
        yield Chunks(tokens=text, images=max(1, images // 2**halves))
        halves += 1


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


def weight_shapes(clip: ClipConfig) -> Iterable[tuple[str, tuple[int, ...]]]:
    """Yield name and shape of every tensor of a CLIP model, under open_clip's names."""
    for prefix, tower in (("visual.", clip.vision), ("", clip.text)):
        width = tower.width
        for layer in range(tower.layers):
            at = f"{prefix}transformer.resblocks.{layer}"
            for name, *shape in (
                ("attn.in_proj", 3 * width, width),
                ("attn.out_proj", width, width),
                ("mlp.c_fc", 4 * width, width),
                ("mlp.c_proj", width, 4 * width),
                ("ln_1", width),
                ("ln_2", width),
            ):
                joint = "_" if name == "attn.in_proj" else "."
                yield f"{at}.{name}{joint}weight", tuple(shape)
                yield f"{at}.{name}{joint}bias", (shape[0],)
    vision, text = clip.vision.width, clip.text.width
    tokens = (clip.image_size // clip.patch_size) ** 2 + 1
    yield "visual.conv1.weight", (vision, 3, clip.patch_size, clip.patch_size)
    yield "visual.class_embedding", (vision,)
    yield "visual.positional_embedding", (tokens, vision)
    yield "visual.proj", (vision, clip.embed_dim)
    for name, width in (("visual.ln_pre", vision), ("visual.ln_post", vision), ("ln_final", text)):
        yield f"{name}.weight", (width,)
        yield f"{name}.bias", (width,)
    yield "token_embedding.weight", (clip.vocab_size, text)
    yield "positional_embedding", (clip.context_length, text)
    yield "text_projection", (text, clip.embed_dim)
    yield "logit_scale", ()
