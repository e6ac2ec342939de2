"""Top-1 accuracy of CLIP weights on decoded images, prompts encoded once."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from blocklora.adapters.adapter import Adapter
from blocklora.adapters.merge import merge
from blocklora.clip.prompts import pack
from blocklora.clip.towers import TextTower, VisionTower, embed_prompts
from blocklora.clip.weights import Backbone
from blocklora.training.engine import DTYPES

BATCH_SIZES = {"cpu": 64, "cuda": 256}


def evaluation_dtype(device: str, precision: str) -> torch.dtype:
    """Return what the weights are tested in after a run in `precision`."""
    # OpenAI's weights are published in fp16. bf16 rounds them from 11 bits to 8, and would round
    # the sum with an update again; fp16 holds them exactly and is as fast on a GPU. What makes bf16
    # the safer one in training, the range of gradients, does not matter here.
    if device == "cuda" and precision == "bf16":
        return torch.float16
    return DTYPES[precision]


class Classifier:
    """CLIP with class prompts, the adapter merged into plain weights."""

    def __init__(
        self,
        backbone: Backbone,
        adapter: Adapter | None,
        prompts: Sequence[Sequence[int]],
        device: str = "cpu",
        precision: str = "fp32",
    ) -> None:
        """Merge `adapter`, if any, and encode the prompts, given as token ids class by class."""
        if adapter is not None:
            weights = merge(backbone.weights, adapter)
            backbone = Backbone(backbone.config, weights, backbone.sha256)
        dtype = evaluation_dtype(device, precision)
        self.device = torch.device(device)
        self.vision = VisionTower(backbone, device, dtype)
        text = TextTower(backbone, device, dtype)
        chunks, rows = pack(prompts, tokens_per_chunk=4096)
        with torch.inference_mode():
            features = torch.cat(
                [text(embed_prompts(backbone, chunk, device), chunk.to(device)) for chunk in chunks]
            )
            self.class_features = F.normalize(features, dim=-1)[rows.to(device)]

    def cosines(self, pixels: np.ndarray) -> Tensor:
        """Return the cosine of each image with each class, on the CPU, shape (images, classes).

        Args:
            pixels: uint8 (images, size, size, 3), preprocessed; may be a memory map.
        """
        batch = BATCH_SIZES[self.device.type]
        starts = range(0, len(pixels), batch)
        cosines = []
        with torch.inference_mode():
            for start in tqdm(starts, desc="testing", unit="batch", disable=None, leave=False):
                images = torch.from_numpy(np.array(pixels[start : start + batch]))
                features = F.normalize(self.vision(images.to(self.device)), dim=-1)
                cosines.append((features @ self.class_features.T).cpu())
        return torch.cat(cosines)

    def predict(self, pixels: np.ndarray) -> Tensor:
        """Return the class of each image, int64, shape (images,); `pixels` as in `cosines`."""
        return self.cosines(pixels).argmax(-1)

    def correct(self, pixels: np.ndarray, labels: np.ndarray) -> int:
        """Return how many of `pixels` are given their label, int64 (images,)."""
        return int((self.predict(pixels) == torch.from_numpy(labels)).sum())
