"""What the training loop needs of an engine, and the fast one.

An engine computes the loss of a batch and the gradients of the adapter. `ReferenceEngine`
(`reference.py`) does so as plainly as possible; `FastEngine` computes the same function:

- prompts cut at their end-of-text token, packed without padding, equal ones encoded once;
- thin low-rank products over frozen weights stored once in the compute dtype (`engine/towers.py`);
- a tower without an adapter gets no gradients, and its text features are computed once;
- prompts and images may be encoded in chunks, all but the last run again when their gradient is
  needed, so that memory grows with the chunk and not with the number of classes;
- on a GPU the whole step is recorded once and replayed (`graphs.py`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from blocklora.adapters.adapter import Adapter
from blocklora.adapters.algebra import merge_arms, tile_down
from blocklora.backbones.model import Backbone
from blocklora.engine.graphs import CudaGraphs, Recordings
from blocklora.engine.masks import draw_masks
from blocklora.engine.packing import pack
from blocklora.engine.precisions import PRECISIONS, dtype_of
from blocklora.engine.randomness import torch_generator
from blocklora.engine.towers import TextTower, Updates, VisionTower, embed_prompts


@dataclass(frozen=True)
class Chunks:
    """How much is encoded at a time in training; None means everything at once.

    Attributes:
        tokens: prompt tokens whose activations are kept at a time.
        images: images whose activations are kept at a time.
    """

    tokens: int | None = None
    images: int | None = None


class Engine(Protocol):
    """Computes loss and adapter gradients of one batch.

    Attributes:
        adapter: is trained.
        seed: decides the dropout.
        device: the device it computes on.
        dtype: the type of the frozen weights and of products.
        scaled: True if the loss is scaled up before the backward pass.
        recorded: True if steps are recorded and replayed; False if they could not be recorded, so
            that one operation runs after the other; None where recording is not tried.
    """

    chunked: bool
    """Whether it encodes in chunks, so that its memory can be planned."""
    adapter: Adapter
    seed: int
    device: torch.device
    dtype: torch.dtype
    scaled: bool
    recorded: bool | None

    def step(
        self, images: Tensor, labels: Tensor, step: int, scaler: torch.amp.GradScaler
    ) -> tuple[Tensor, Tensor]:
        """Add the gradients of a batch to the adapter's parameters.

        Args:
            images: uint8 (batch, size, size, 3) on the engine's device.
            labels: int64 (batch,) on the engine's device; −100 leaves an image out of everything.
            step: number of the step, which decides the dropout.
            scaler: scales the loss before the backward pass (fp16).

        Returns:
            The mean cross-entropy and the number of correct predictions, both 0-dimensional.
        """


def classification_loss(
    image_features: Tensor, text_features: Tensor, labels: Tensor, logit_scale: float
) -> tuple[Tensor, Tensor]:
    """Return cross-entropy of `logit_scale` × cosine, and the number of correct predictions.

    Args:
        image_features: shape (images, dim), any norm.
        text_features: shape (classes, dim), any norm.
        labels: shape (images,); an image with the label −100 does not count.
        logit_scale: 100 in the protocol.
    """
    cosines = F.normalize(image_features, dim=-1) @ F.normalize(text_features, dim=-1).T
    correct = (cosines.argmax(-1) == labels).sum()
    return F.cross_entropy(logit_scale * cosines, labels), correct


def tower_updates(adapter: Adapter, tower: str, dtype: torch.dtype) -> Updates | None:
    """Return the updates of a tower in the compute dtype, None if it is not adapted.

    They are differentiable functions of the adapter's parameters.
    """
    if tower not in adapter.towers:
        return None
    config, factors = adapter.config, adapter.towers[tower]
    down = tile_down(factors.down, config) * (config.scale / (1 - config.dropout))
    matrices = config.matrices
    numbers = torch.arange(len(matrices), dtype=torch.uint8, device=down.device)
    # Rows of the width: four times faster products than columns have, on a CPU.
    up = merge_arms(factors.up).mT.contiguous()
    return Updates(
        factors.first, matrices, numbers, down.to(dtype).unbind(0), up.to(dtype).unbind(0)
    )


def restart(engine: Engine, adapter: Adapter, seed: int) -> None:
    """Let an engine train another adapter of the same shapes, with the dropout of another seed.

    The values are copied to where those of the engine's adapter are, which recorded steps read.
    """
    with torch.no_grad():
        for mine, other in zip(engine.adapter.parameters(), adapter.parameters(), strict=True):
            mine.copy_(other)
            mine.grad = None
    engine.seed = seed


class FastEngine:
    """The default engine; see the module's text."""

    chunked = True

    def __init__(
        self,
        backbone: Backbone,
        adapter: Adapter,
        prompts: Sequence[Sequence[int]],
        *,
        logit_scale: float,
        seed: int,
        device: str = "cpu",
        precision: str = "fp32",
        chunks: Chunks = Chunks(),
        cuda_graphs: bool = True,
    ) -> None:
        """Prepare for the prompts of a dataset, given as token ids class by class.

        `cuda_graphs` says whether steps on a GPU are recorded and replayed.
        """
        self.adapter, self.logit_scale, self.seed = adapter, logit_scale, seed
        self.device, self.dtype = torch.device(device), dtype_of(precision)
        self.scaled = PRECISIONS[precision].scaled
        self.vision = VisionTower(backbone, device, self.dtype)
        self.text = TextTower(backbone, device, self.dtype)
        self.images_per_chunk = chunks.images
        packed, rows = pack(prompts, chunks.tokens)
        self.chunks = [chunk.to(device) for chunk in packed]
        self.rows = rows.to(device)
        self.embedded = [embed_prompts(backbone, chunk, device) for chunk in packed]
        self.one = torch.ones((), device=device)
        self.fixed_text = None
        if "text" not in adapter.towers:
            with torch.no_grad():
                self.fixed_text = self._encode_text(None)
        on_gpu = self.device.type == "cuda"
        self._recordings = Recordings(CudaGraphs()) if cuda_graphs and on_gpu else None

    @property
    def recorded(self) -> bool | None:
        """See `Engine`."""
        return None if self._recordings is None else self._recordings.works

    def step(
        self, images: Tensor, labels: Tensor, step: int, scaler: torch.amp.GradScaler
    ) -> tuple[Tensor, Tensor]:
        """See `Engine.step`."""
        masks = (
            self._masks("vision", len(images) * self.vision.tokens, step),
            self._masks("text", sum(map(len, self.embedded)), step),
        )
        inputs = images, labels, scaler.scale(self.one), *masks
        if self._recordings is None:
            loss, correct, *gradients = self._compute(*inputs)
        else:
            loss, correct, *gradients = self._recordings(self._compute, *inputs)
        for parameter, gradient in zip(self.adapter.parameters(), gradients, strict=True):
            parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
        return loss, correct

    def _compute(
        self,
        images: Tensor,
        labels: Tensor,
        loss_scale: Tensor,
        vision_masks: Tensor | None,
        text_masks: Tensor | None,
    ) -> tuple[Tensor, ...]:
        """Return loss, correct predictions and the gradient of each parameter of the adapter."""
        image_features = self._encode_images(images, vision_masks)
        text_features = self.fixed_text
        if text_features is None:
            text_features = self._encode_text(text_masks)
        loss, correct = classification_loss(image_features, text_features, labels, self.logit_scale)
        gradients = torch.autograd.grad(loss * loss_scale, self.adapter.parameters())
        # Arms that share their sum share a gradient, which a GradScaler could not write to.
        return loss.detach(), correct, *(gradient.contiguous() for gradient in gradients)

    def _encode_images(self, images: Tensor, masks: Tensor | None) -> Tensor:
        """Return the image features, shape (images, embed_dim)."""
        updates = tower_updates(self.adapter, "vision", self.dtype)
        sizes = chunk_sizes(len(images), self.images_per_chunk)
        parts = _split_masks(masks, [size * self.vision.tokens for size in sizes])
        chunks = zip(images.split(sizes), parts, strict=True)
        return _encode(self.vision, [(part, updates, mask) for part, mask in chunks])

    def _encode_text(self, masks: Tensor | None) -> Tensor:
        """Return the text features of every class, shape (classes, embed_dim)."""
        updates = tower_updates(self.adapter, "text", self.dtype)
        parts = _split_masks(masks, [len(embedded) for embedded in self.embedded])
        chunks = zip(self.embedded, self.chunks, parts, strict=True)
        return _encode(self.text, [(x, chunk, updates, mask) for x, chunk, mask in chunks])[
            self.rows
        ]

    def _masks(self, tower: str, tokens: int, step: int) -> Tensor | None:
        """Return the dropout masks of a tower, uint8 (adapted layers, tokens, width), if any.

        They do not depend on the chunks.
        """
        factors, dropout = self.adapter.towers.get(tower), self.adapter.config.dropout
        if factors is None or dropout == 0:
            return None
        shape = (len(factors.down), tokens, getattr(self, tower).width)
        generator = torch_generator(self.seed, f"{tower} dropout", step, device=self.device)
        return draw_masks(shape, dropout, generator, self.device)


def _encode(tower: Callable[..., Tensor], chunks: Sequence[tuple[Any, ...]]) -> Tensor:
    """Return the features of all chunks, given as arguments of the tower.

    All chunks but the last keep their inputs only and are encoded again, with the same dropout
    masks, when their gradient is needed. The last one's gradient comes first, and what it keeps
    is then freed.
    """
    again = [
        checkpoint(tower, *chunk, use_reentrant=False, preserve_rng_state=False)
        for chunk in chunks[:-1]
    ]
    return torch.cat([*again, tower(*chunks[-1])])


def chunk_sizes(count: int, chunk: int | None) -> list[int]:
    """Return the sizes of chunks of `count` images; the first may be smaller than the others."""
    if chunk is None or chunk >= count:
        return [count]
    rest = count % chunk
    return [rest] * (rest > 0) + [chunk] * (count // chunk)


def _split_masks(masks: Tensor | None, tokens: Sequence[int]) -> Sequence[Tensor | None]:
    return [None] * len(tokens) if masks is None else masks.split(list(tokens), 1)
