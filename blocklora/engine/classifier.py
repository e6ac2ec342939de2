"""Classification of images with a CLIP model and class prompts that are encoded once."""

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from blocklora.backbones.model import Backbone
from blocklora.engine.memory import MORE_MEMORY, free_bytes, is_out_of_memory, release_memory
from blocklora.engine.packing import pack
from blocklora.engine.precisions import dtype_of
from blocklora.engine.reading import AHEAD, Pixels, read_ahead
from blocklora.engine.towers import TextTower, VisionTower, embed_prompts
from blocklora.errors import UserError

BATCH_SIZES = {"cpu": 64, "cuda": 256}
"""The number of images in a batch, by the type of the device, as long as memory suffices."""

TOKENS_PER_CHUNK = 4096
"""The number of tokens of the prompts that are encoded at a time.

They keep a GPU busy, but need no more memory than 14 images of ViT-B/16, so that it does not depend
on the number of classes whether a classifier fits.
"""

Result = TypeVar("Result")

logger = logging.getLogger(__name__)


def evaluation_dtype(device: str, precision: str) -> torch.dtype:
    """Return the dtype for testing a run of this precision."""
    # OpenAI's weights are published in fp16, which holds them exactly with its 11 significant bits
    # and rounds merged weights less than bf16 with its 8. Their nominal speed on a GPU is the same,
    # and the larger range of bf16 only matters for gradients.
    if device == "cuda" and precision == "bf16":
        return torch.float16
    return dtype_of(precision)


class Classifier:
    """CLIP with plain weights and one prompt for each class.

    If memory runs out, `reclaim` is called, and batches are halved as often as needed.

    Attributes:
        class_features: Normalised features of the prompts, fp32 (classes, embed_dim).
    """

    def __init__(
        self,
        backbone: Backbone,
        prompts: Sequence[Sequence[int]],
        logit_scale: float,
        device: str = "cpu",
        precision: str = "fp32",
        reclaim: Callable[[], None] | None = None,
    ) -> None:
        """Encode the prompts.

        Args:
            backbone: The model, into which an adapter is merged already.
            prompts: The token ids of each class.
            logit_scale: The factor of the cosines in the softmax.
            device: "cpu" or "cuda".
            precision: The precision of the run, which decides the dtype; see `evaluation_dtype`.
            reclaim: Frees memory that is only kept to save time later. It is called at most once.

        Raises:
            UserError: There is not enough memory.
        """
        dtype = evaluation_dtype(device, precision)
        self.device, self.logit_scale = torch.device(device), logit_scale
        self._name, self._reclaim = f"{backbone.config.name} in {dtype}", reclaim
        self._batch_size = BATCH_SIZES[self.device.type]
        build = partial(_build, backbone, prompts, device, dtype)
        while (built := _unless_out_of_memory(build)) is None:
            self._make_room(1)
        self.vision, self.class_features = built

    @torch.inference_mode()
    def features(self, pixels: Pixels) -> Iterator[Tensor]:
        """Yield the normalised features of a batch at a time, fp32 (images, embed_dim).

        They stay on the device, which may not have computed them yet. `pixels` is uint8 (images,
        size, size, 3), and a thread reads its slices ahead.

        Raises:
            UserError: There is not enough memory for a single image.
        """
        batch_size, on_gpu = BATCH_SIZES[self.device.type], self.device.type == "cuda"
        batches = read_ahead(pixels, batch_size, pinned=on_gpu)
        running: deque[torch.cuda.Event] = deque()
        total = -(-len(pixels) // batch_size)
        shown = tqdm(batches, "images", total, unit="batch", disable=None, leave=False)
        for images in shown:
            while len(images):
                found = _unless_out_of_memory(partial(self._encode, images[: self._batch_size]))
                if found is None:
                    self._make_room(min(self._batch_size, len(images)))
                    continue
                images = images[len(found) :]
                yield found
            if on_gpu:
                # Launching is faster than computing, and batches that wait for their copy to the
                # GPU would fill the memory. There is always one more for the GPU to go on with.
                running.append(torch.cuda.Event(blocking=True))
                running[-1].record()
                if len(running) > AHEAD:
                    running.popleft().synchronize()

    def predict(self, pixels: Pixels) -> tuple[np.ndarray, np.ndarray]:
        """Return the most likely class of each image, int64, and its probability, float32.

        Both have the shape (images,). Probabilities are the softmax of `logit_scale` × cosine.

        Raises:
            UserError: There is not enough memory for a single image, or a feature is not finite.
        """
        found = [self._choose(features) for features in self.features(pixels)]
        parts = (torch.cat(each) for each in zip(*found, strict=True))
        classes, probabilities = (part.cpu().numpy() for part in parts)
        if not np.isfinite(probabilities).all():
            # Nothing else would tell, since NaN counts as the largest of all cosines.
            raise UserError(
                f"{self._name} gives features that are not finite; check its weights, or choose "
                "the precision fp32 (in config.yaml or by --precision)"
            )
        return classes, probabilities

    def _encode(self, images: Tensor) -> Tensor:
        return F.normalize(self.vision(images.to(self.device, non_blocking=True)), dim=-1)

    @torch.inference_mode()
    def _choose(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return the results of `predict` for the features of a batch, on the device."""
        cosines = features @ self.class_features.T
        classes = cosines.argmax(-1)
        probabilities = (self.logit_scale * cosines).softmax(-1)
        return classes, probabilities.gather(-1, classes[:, None])[:, 0]

    def _make_room(self, images: int) -> None:
        """Free what is kept for later or halve the batches, after memory ran out with `images`.

        Raises:
            UserError: Nothing more can be done.
        """
        if self._reclaim is not None:
            self._reclaim()
            self._reclaim = None
        elif images > 1:
            self._batch_size = images // 2
            logger.warning(
                "out of memory with a batch of %d images; %d are classified at a time from now on",
                images,
                self._batch_size,
            )
        else:
            raise UserError(
                f"{self._name} needs more memory to classify an image than the "
                f"{free_bytes(self.device.type) / 2**20:.1f} MiB that are free; "
                f"{MORE_MEMORY}"
            )
        release_memory(self.device.type)


def _build(
    backbone: Backbone, prompts: Sequence[Sequence[int]], device: str, dtype: torch.dtype
) -> tuple[VisionTower, Tensor]:
    """Return the vision tower, and the normalised features of the prompts."""
    vision = VisionTower(backbone, device, dtype)
    text = TextTower(backbone, device, dtype)
    chunks, rows = pack(prompts, TOKENS_PER_CHUNK)
    with torch.inference_mode():
        features = torch.cat(
            [text(embed_prompts(backbone, chunk, device), chunk.to(device)) for chunk in chunks]
        )
        return vision, F.normalize(features, dim=-1)[rows.to(device)]


def _unless_out_of_memory(function: Callable[[], Result]) -> Result | None:
    """Return the result of a function, or None if memory ran out in it."""
    try:
        return function()
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
    # This is outside the `except` block, because the error keeps the function's tensors alive.
    return None
