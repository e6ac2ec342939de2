"""The interface between engines and the training loop, and the fast engine.

An engine computes the loss of a batch and the gradients of the adapter. `ReferenceEngine`
(`reference.py`) does this as plainly as possible. `FastEngine` computes the same function faster:

- prompts end at their end-of-text token, are packed without padding, and equal ones are encoded
  once;
- frozen weights are stored once in the compute dtype (`towers.py`), and low-rank updates are
  applied as thin products (`products.py`);
- a tower without an adapter gets no gradients; if it is the text tower, its features are computed
  only once;
- prompts and images can be encoded in chunks, of which all but the last are encoded again in the
  backward pass, so that memory grows with the size of a chunk rather than the number of classes;
- on a GPU, the whole step is recorded once and replayed (`graphs.py`).
"""

from collections.abc import Sequence
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
from blocklora.engine.products import Paths
from blocklora.engine.randomness import integer_seed
from blocklora.engine.towers import TextTower, Updates, VisionTower, embed_prompts


@dataclass(frozen=True)
class Chunks:
    """The numbers of prompt tokens and of images to encode at a time; None means all of them."""

    tokens: int | None = None
    images: int | None = None


class Engine(Protocol):
    """Computes the loss and the adapter's gradients for a batch.

    Attributes:
        chunked: True if it can encode in chunks, so that its memory can be planned.
        adapter: The adapter that is trained.
        seed: The seed for dropout.
        device: The device it computes on.
        dtype: The dtype of matrix products.
        scaled: True if the loss is scaled up before the backward pass.
        recorded: True if steps are recorded and replayed, False if recording failed, None if it has
            not been attempted.
    """

    chunked: bool
    adapter: Adapter
    seed: int
    device: torch.device
    dtype: torch.dtype
    scaled: bool
    recorded: bool | None

    def step(
        self, images: Tensor, labels: Tensor, step: int, scaler: torch.amp.GradScaler
    ) -> tuple[Tensor, Tensor]:
        """Add the gradients of the scaled loss to the `grad` of the adapter's parameters.

        Args:
            images: uint8 (batch, size, size, 3) on the engine's device.
            labels: int64 (batch,) on the engine's device; images labelled −100 are ignored.
            step: Number of the step, which seeds the dropout together with the engine's seed.
            scaler: Scales the loss before the backward pass, if it is enabled (fp16).

        Returns:
            The mean cross-entropy, unscaled, and the number of correct predictions, both
            0-dimensional.
        """


def classification_loss(
    image_features: Tensor, text_features: Tensor, labels: Tensor, logit_scale: float
) -> tuple[Tensor, Tensor]:
    """Return the cross-entropy of `logit_scale` × cosine, and the number of correct predictions.

    Features have the shapes (images, dim) and (classes, dim) and any norm. The cross-entropy is the
    mean over the images, except for those with the label −100, which are ignored.
    """
    cosines = F.normalize(image_features, dim=-1) @ F.normalize(text_features, dim=-1).T
    correct = (cosines.argmax(-1) == labels).sum()
    return F.cross_entropy(logit_scale * cosines, labels), correct


def tower_updates(adapter: Adapter, tower: str, dtype: torch.dtype) -> Updates:
    """Return the updates of a tower in `dtype`, as functions of the adapter's parameters.

    There are none if the tower has no adapter.
    """
    if tower not in adapter.towers:
        return {}
    config, factors = adapter.config, adapter.towers[tower]
    down = tile_down(factors.down, config) * (config.scale / (1 - config.dropout))
    matrices = config.matrices
    numbers = torch.arange(len(matrices), dtype=torch.uint8, device=down.device)
    # On a CPU, products are four times faster if the width is the last dimension.
    up = merge_arms(factors.up).mT.contiguous()
    layers = zip(down.to(dtype).unbind(0), up.to(dtype).unbind(0), strict=True)
    return {
        layer: Paths(matrices, numbers, *pair) for layer, pair in enumerate(layers, factors.first)
    }


def restart(engine: Engine, adapter: Adapter, seed: int) -> None:
    """Make an engine train another adapter of the same shapes, with another seed for dropout.

    Values are copied into the engine's own adapter, because recorded steps read from there.
    """
    with torch.no_grad():
        for mine, other in zip(engine.adapter.parameters(), adapter.parameters(), strict=True):
            mine.copy_(other)
            mine.grad = None
    engine.seed = seed


class FastEngine:
    """The default engine; the docstring of this module explains why it is fast."""

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
        """Prepare for the prompts of a dataset, which are the token ids of each class.

        If `cuda_graphs` is true, steps on a GPU are recorded and replayed.
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
        keys = self._key(self.vision, step), self._key(self.text, step)
        inputs = images, labels, scaler.scale(self.one), *keys
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
        vision_key: Tensor | None,
        text_key: Tensor | None,
    ) -> tuple[Tensor, ...]:
        """Return the loss, the number of correct predictions, and each parameter's gradient."""
        image_features = self._encode_images(images, vision_key)
        text_features = self.fixed_text
        if text_features is None:
            text_features = self._encode_text(text_key)
        loss, correct = classification_loss(image_features, text_features, labels, self.logit_scale)
        gradients = torch.autograd.grad(loss * loss_scale, self.adapter.parameters())
        # The gradients of a matrix's arms share memory, so a GradScaler could not unscale them in
        # place.
        return loss.detach(), correct, *(gradient.contiguous() for gradient in gradients)

    def _encode_images(self, images: Tensor, key: Tensor | None) -> Tensor:
        """Return the image features, shape (images, embed_dim)."""
        sizes = chunk_sizes(len(images), self.images_per_chunk)
        chunks = [(part,) for part in images.split(sizes)]
        return self._encode(self.vision, chunks, [size * self.vision.tokens for size in sizes], key)

    def _encode_text(self, key: Tensor | None) -> Tensor:
        """Return the text features of every class, shape (classes, embed_dim)."""
        chunks = list(zip(self.embedded, self.chunks, strict=True))
        return self._encode(self.text, chunks, list(map(len, self.embedded)), key)[self.rows]

    def _encode(
        self,
        tower: TextTower | VisionTower,
        chunks: Sequence[tuple[Any, ...]],
        tokens: list[int],
        key: Tensor | None,
    ) -> Tensor:
        """Return the features of all chunks, which have `tokens` tokens each.

        `key` is the key of the dropout masks; None applies no dropout. For all chunks but the last,
        only the inputs are kept, and the chunks are encoded again with the same masks when their
        gradients are needed. The backward pass starts with the last chunk, so its activations are
        freed before those of the others are computed again.
        """
        updates = tower_updates(self.adapter, tower.name, self.dtype)
        parts: Sequence[Tensor | None] = [None] * len(tokens)
        if key is not None:
            size = len(updates), sum(tokens), tower.width
            parts = draw_masks(*size, self.adapter.config.dropout, key).split(tokens, 1)
        *others, last = [(*chunk, updates, part) for chunk, part in zip(chunks, parts, strict=True)]
        return torch.cat([*self._encode_again(tower, others), tower(*last)])

    def _encode_again(
        self, tower: TextTower | VisionTower, chunks: Sequence[tuple[Any, ...]]
    ) -> list[Tensor]:
        """Return the features of chunks that are encoded again in the backward pass."""
        return [
            checkpoint(tower, *inputs, use_reentrant=False, preserve_rng_state=False)
            for inputs in chunks
        ]

    def _key(self, tower: TextTower | VisionTower, step: int) -> Tensor | None:
        """Return the key of a tower's dropout masks, int64 (); None if it has no dropout."""
        if tower.name not in self.adapter.towers or self.adapter.config.dropout == 0:
            return None
        # Filling in a value is no copy from the host, which might wait for the GPU.
        value = integer_seed(self.seed, f"{tower.name} dropout", step)
        return torch.full((), value, device=self.device)


def chunk_sizes(count: int, chunk: int | None) -> list[int]:
    """Return the sizes of the chunks of `count` images, of which the first may be smaller.

    `chunk` is the size of the others; None means that there is a single chunk.
    """
    if chunk is None or chunk >= count:
        return [count]
    rest = count % chunk
    return [rest] * (rest > 0) + [chunk] * (count // chunk)
