"""The weights of a CLIP model by name, and the open_clip module with these weights.

Importing open_clip takes seconds, so the module is built only for the reference engine, pretraining
and tests.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from blocklora.backbones.shape import ClipConfig, TowerConfig
from blocklora.errors import UserError


@dataclass(frozen=True)
class Backbone:
    """A CLIP model.

    Attributes:
        config: The configuration of the model.
        weights: The fp32 tensors by open_clip's names.
        sha256: The SHA-256 of the backbone file.
    """

    config: ClipConfig
    weights: dict[str, Tensor]
    sha256: str


def tensor_shapes(config: ClipConfig) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor of `open_clip.model.CLIP` by its name."""
    vision, text = config.vision, config.text
    tokens = config.vision_tokens
    return {
        "positional_embedding": (config.context_length, text.width),
        "text_projection": (text.width, config.embed_dim),
        "logit_scale": (),
        "visual.class_embedding": (vision.width,),
        "visual.positional_embedding": (tokens, vision.width),
        "visual.proj": (vision.width, config.embed_dim),
        "visual.conv1.weight": (vision.width, 3, config.patch_size, config.patch_size),
        **_affine_shapes("visual.ln_pre", vision.width),
        **_transformer_shapes("visual.transformer", vision),
        **_affine_shapes("visual.ln_post", vision.width),
        **_transformer_shapes("transformer", text),
        "token_embedding.weight": (config.vocab_size, text.width),
        **_affine_shapes("ln_final", text.width),
    }


def _affine_shapes(name: str, *weight: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": weight, f"{name}.bias": weight[:1]}


def _transformer_shapes(name: str, tower: TowerConfig) -> dict[str, tuple[int, ...]]:
    width, shapes = tower.width, {}
    for layer in range(tower.layers):
        block = f"{name}.resblocks.{layer}"
        shapes |= {
            **_affine_shapes(f"{block}.ln_1", width),
            f"{block}.attn.in_proj_weight": (3 * width, width),
            f"{block}.attn.in_proj_bias": (3 * width,),
            **_affine_shapes(f"{block}.attn.out_proj", width, width),
            **_affine_shapes(f"{block}.ln_2", width),
            **_affine_shapes(f"{block}.mlp.c_fc", 4 * width, width),
            **_affine_shapes(f"{block}.mlp.c_proj", width, 4 * width),
        }
    return shapes


def build_open_clip(config: ClipConfig, weights: dict[str, Tensor] | None = None) -> nn.Module:
    """Return the open_clip module in eval mode, with `weights` if they are given.

    Raises:
        UserError: A tensor is missing, left over or has the wrong shape.
    """
    from open_clip.model import CLIP

    model = CLIP(**config.to_open_clip()).eval()
    if weights is not None:
        try:
            model.load_state_dict(weights)
        except RuntimeError as error:
            raise UserError(f"the weights do not fit the model {config.name}: {error}") from None
    return model
