"""Classification of images with a CLIP model and class prompts that are encoded once."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from blocklora.backbones.model import Backbone
from blocklora.engine.packing import pack
from blocklora.engine.precisions import dtype_of
from blocklora.engine.towers import TextTower, VisionTower, embed_prompts

BATCH_SIZES = {"cpu": 64, "cuda": 256}
"""The number of images in a batch, by the type of the device."""


def evaluation_dtype(device: str, precision: str) -> torch.dtype:
    """Return the dtype for testing a run of this precision."""
    # OpenAI's weights are published in fp16, which holds them exactly with its 11 significant bits
    # and rounds merged weights less than bf16 with its 8. Both are equally fast on a GPU, and the
    # larger range of bf16 only matters for gradients.
    if device == "cuda" and precision == "bf16":
        return torch.float16
    return dtype_of(precision)


class Classifier:
    """CLIP with plain weights and one prompt for each class.

    Attributes:
        class_features: Normalised features of the prompts, shape (classes, embed_dim).
    """

    def __init__(
        self,
        backbone: Backbone,
        prompts: Sequence[Sequence[int]],
        logit_scale: float,
        device: str = "cpu",
        precision: str = "fp32",
    ) -> None:
        """Encode the prompts, which are the token ids of each class.

        The dtype follows from the device and the precision of the run; see `evaluation_dtype`.
        """
        dtype = evaluation_dtype(device, precision)
        self.device, self.logit_scale = torch.device(device), logit_scale
        self.vision = VisionTower(backbone, device, dtype)
        text = TextTower(backbone, device, dtype)
        chunks, rows = pack(prompts, tokens_per_chunk=4096)
        with torch.inference_mode():
            features = torch.cat(
                [text(embed_prompts(backbone, chunk, device), chunk.to(device)) for chunk in chunks]
            )
            self.class_features = F.normalize(features, dim=-1)[rows.to(device)]

    @torch.inference_mode()
    def features(self, pixels: np.ndarray) -> Iterator[Tensor]:
        """Yield the normalised features of preprocessed images, a batch at a time.

        `pixels` is uint8 (images, size, size, 3) and may be a memory map.
        """
        batch = BATCH_SIZES[self.device.type]
        starts = range(0, len(pixels), batch)
        for start in tqdm(starts, desc="images", unit="batch", disable=None, leave=False):
            images = torch.from_numpy(np.array(pixels[start : start + batch]))
            yield F.normalize(self.vision(images.to(self.device)), dim=-1)

    def cosines(self, pixels: np.ndarray) -> Tensor:
        """Return the cosine of each image and class on the CPU, fp32 (images, classes)."""
        found = (features @ self.class_features.T for features in self.features(pixels))
        return torch.cat([cosines.cpu() for cosines in found])

    def predict(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the most likely class of each image, int64, and its probability, float32.

        Both have the shape (images,). Probabilities are the softmax of `logit_scale` × cosine.
        """
        cosines = self.cosines(pixels)
        classes = cosines.argmax(-1)
        probabilities = (self.logit_scale * cosines).softmax(-1)
        chosen = probabilities.gather(-1, classes[:, None])[:, 0]
        return classes.numpy(), chosen.numpy()
