"""The `miniature` section of a study: settings for drawing and for pretraining the small CLIP."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from blocklora.backbones.shape import TowerConfig
from blocklora.fields import Allowed, Checked, Count, Positive, Seed

Tower = Annotated[TowerConfig, Allowed("a mapping of the width, layers and heads of a transformer")]


@dataclass(frozen=True)
class Settings(Checked):
    """Everything that drawn pictures and the weights of the small CLIP depend on.

    Attributes:
        seed: Seed for the pictures, the captions and the initial weights.
        image_size: Side of the pictures in pixels.
        patch_size: Side of the patches of the vision transformer in pixels.
        embed_dim: Width of the joint embedding space.
        context_length: Number of tokens in the context of the text transformer.
        vision: Shape of the vision transformer.
        text: Shape of the text transformer.
        steps: Gradient steps of pretraining.
        batch_size: Image–caption pairs per step.
        learning_rate: Learning rate of AdamW, which the warm-up and a cosine schedule scale down.
    """

    seed: Seed
    image_size: Count
    patch_size: Count
    embed_dim: Count
    context_length: Count
    vision: Tower
    text: Tower
    steps: Count
    batch_size: Count
    learning_rate: Positive

    def faults(self) -> Iterator[str]:
        """Yield the values that do not fit together."""
        pairs = [("patch_size", self.patch_size, "image_size", self.image_size)]
        for name, tower in (("vision", self.vision), ("text", self.text)):
            pairs.append((f"{name}.heads", tower.heads, f"{name}.width", tower.width))
        for key, divisor, whole_key, whole in pairs:
            if whole % divisor:
                yield f"{key}: {divisor} is not allowed; it must divide {whole_key}, {whole}"
