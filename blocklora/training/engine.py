"""What the training loop needs of an engine, and the fast one.

An engine computes the loss of a batch and the gradients of the adapter. `ReferenceEngine`
(`reference.py`) does so as plainly as possible; `FastEngine` computes the same function:

- prompts cut at their end-of-text token, packed without padding, equal ones encoded once;
- thin low-rank products over frozen weights stored once in the compute dtype (`clip/towers.py`);
- a tower without an adapter gets no gradients, and its text features are computed once;
- prompts and images may be encoded in chunks, each recomputed when its gradient is needed, so
  that memory grows with the chunk and not with the number of classes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from blocklora.adapters.adapter import Adapter
from blocklora.clip.masks import draw_masks
from blocklora.clip.prompts import pack
from blocklora.clip.towers import TextTower, VisionTower, layer_updates
from blocklora.clip.weights import Backbone
from blocklora.training.randomness import torch_generator

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


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
    """Computes loss and adapter gradients of one batch."""

    adapter: Adapter
    device: torch.device
    dtype: torch.dtype

    def step(
        self, images: Tensor, labels: Tensor, step: int, scaler: torch.amp.GradScaler
    ) -> tuple[Tensor, Tensor]:
        """Add the gradients of a batch to the adapter's parameters.

        Args:
            images: uint8 (batch, size, size, 3) on the engine's device.
            labels: int64 (batch,) on the engine's device.
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
        labels: shape (images,).
        logit_scale: 100 in the protocol.
    """
    cosines = F.normalize(image_features, dim=-1) @ F.normalize(text_features, dim=-1).T
    correct = (cosines.argmax(-1) == labels).sum()
    return F.cross_entropy(logit_scale * cosines, labels), correct


class FastEngine:
    """The default engine; see the module's text."""

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
    ) -> None:
        """Prepare for the prompts of a dataset, given as token ids class by class."""
        self.adapter, self.logit_scale, self.seed = adapter, logit_scale, seed
        self.device, self.dtype = torch.device(device), DTYPES[precision]
        self.vision = VisionTower(backbone, device, self.dtype)
        self.text = TextTower(backbone, device, self.dtype)
        self.images_per_chunk = chunks.images
        packed, rows = pack(prompts, chunks.tokens)
        self.chunks = [chunk.to(device) for chunk in packed]
        self.rows = rows.to(device)
        self.embedded = [self.text.embed(chunk) for chunk in self.chunks]
        self.fixed_text = None
        if "text" not in adapter.towers:
            with torch.no_grad():
                self.fixed_text = self._encode_text(None, 0)

    def step(
        self, images: Tensor, labels: Tensor, step: int, scaler: torch.amp.GradScaler
    ) -> tuple[Tensor, Tensor]:
        """See `Engine.step`."""
        image_features = self._encode_images(images, step)
        text_features = self.fixed_text
        if text_features is None:
            text_features = self._encode_text(self.adapter, step)
        loss, correct = classification_loss(image_features, text_features, labels, self.logit_scale)
        scaler.scale(loss).backward()
        return loss.detach(), correct

    def _encode_images(self, images: Tensor, step: int) -> Tensor:
        """Return the image features, shape (images, embed_dim)."""
        updates = layer_updates(self.adapter, "vision", self.vision.transformer.layers, self.dtype)
        parts = images.split(self.images_per_chunk or len(images))
        encode = _recomputed(self.vision) if len(parts) > 1 else self.vision
        features = []
        for index, part in enumerate(parts):
            masks = self._masks("vision", len(part) * self.vision.tokens, step, index)
            features.append(encode(part, updates, masks))
        return torch.cat(features)

    def _encode_text(self, adapter: Adapter | None, step: int) -> Tensor:
        """Return the text features of every class, shape (classes, embed_dim)."""
        updates = layer_updates(adapter, "text", self.text.transformer.layers, self.dtype)
        encode = _recomputed(self.text) if len(self.chunks) > 1 else self.text
        features = []
        for index, (chunk, embedded) in enumerate(zip(self.chunks, self.embedded, strict=True)):
            masks = self._masks("text", len(chunk.tokens), step, index)
            features.append(encode(embedded, chunk, updates, masks))
        return torch.cat(features)[self.rows]

    def _masks(self, tower: str, tokens: int, step: int, chunk: int) -> Tensor | None:
        """Return the dropout masks of one encoding, uint8 (layers, tokens, width)."""
        config = self.adapter.config
        if tower not in self.adapter.towers or config.dropout == 0:
            return None
        transformer = getattr(self, tower).transformer
        return draw_masks(
            (transformer.layers, tokens, getattr(self, tower).width),
            len(config.matrices),
            config.dropout,
            torch_generator(self.seed, f"{tower} dropout", step, chunk, device=self.device),
            self.device,
        )


def _recomputed(encode: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return `encode` keeping its inputs only, and run again for its gradient.

    Both passes see the same dropout masks, which are among the inputs.
    """

    def encode_again(*inputs: Any) -> Tensor:
        return checkpoint(encode, *inputs, use_reentrant=False, preserve_rng_state=False)

    return encode_again
