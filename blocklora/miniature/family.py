"""The backbone family of small CLIP models that are pretrained on drawn images."""

from dataclasses import asdict

from blocklora.backbones.family import Family
from blocklora.backbones.shape import ClipConfig
from blocklora.miniature.settings import Settings

VOCABULARY = 49408  # number of tokens in CLIP's byte-pair encoding


def clip_config(name: str, settings: Settings) -> ClipConfig:
    """Return the shape of the small CLIP called `name`."""
    return ClipConfig(
        name=name,
        embed_dim=settings.embed_dim,
        quick_gelu=True,
        image_size=settings.image_size,
        patch_size=settings.patch_size,
        vision=settings.vision,
        text=settings.text,
        context_length=settings.context_length,
        vocab_size=VOCABULARY,
    )


MINIATURE = Family(
    sources={"miniature": "this study"},
    command="pretrain-backbone",
    code="blocklora.miniature.pretrain",
    config=clip_config,
    definition=lambda name, settings: {"miniature": asdict(settings)},
    drawn=True,
)
