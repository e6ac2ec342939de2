"""The reference engine: open_clip's own modules and the adapter's formula, without optimisation.

Every prompt is padded to the context length and encoded at every step, ΔW is a dense matrix, and
mixed precision uses autocast. The fast engine is tested and benchmarked against this one.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from blocklora.adapters.adapter import Adapter
from blocklora.adapters.attach import Attachment
from blocklora.backbones.model import Backbone, build_open_clip
from blocklora.engine.fast import Chunks, classification_loss
from blocklora.engine.precisions import PRECISIONS, dtype_of
from blocklora.engine.randomness import integer_seed


class ReferenceEngine:
    """CLIP-LoRA's training step on an open_clip model; see `blocklora.engine.fast.Engine`.

    It ignores `chunks` and always encodes everything at once.
    """

    chunked = False

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
        chunks: Chunks | None = None,
    ) -> None:
        """Build the model from `backbone`, attach `adapter` to it, and pad the prompts."""
        self.adapter, self.logit_scale, self.seed = adapter, logit_scale, seed
        self.device, self.dtype = torch.device(device), dtype_of(precision)
        self.scaled, self.recorded = PRECISIONS[precision].scaled, None
        self.model = build_open_clip(backbone.config, backbone.weights).to(device)
        self.attachment = Attachment(self.model, adapter)
        self.model.train()  # turns the dropout of adapters on
        length = backbone.config.context_length
        # CLIP pads with zeros.
        padded = [[*prompt, *[0] * (length - len(prompt))] for prompt in prompts]
        self.tokens = torch.tensor(padded, device=device)
        self.mean = torch.tensor(backbone.config.mean, device=device).view(3, 1, 1)
        self.std = torch.tensor(backbone.config.std, device=device).view(3, 1, 1)

    def step(
        self, images: Tensor, labels: Tensor, step: int, scaler: torch.amp.GradScaler
    ) -> tuple[Tensor, Tensor]:
        """See `Engine.step`; this also seeds torch's global random generator."""
        torch.manual_seed(integer_seed(self.seed, "dropout", step))
        pixels = (images.permute(0, 3, 1, 2).float() / 255 - self.mean) / self.std
        mixed = self.dtype != torch.float32
        with torch.autocast(self.device.type, self.dtype, enabled=mixed):
            image_features = self.model.encode_image(pixels)
            text_features = self.model.encode_text(self.tokens)
        loss, correct = classification_loss(
            image_features.float(), text_features.float(), labels, self.logit_scale
        )
        scaler.scale(loss).backward()
        return loss.detach(), correct
