"""Small models with random weights, for tests of every package."""

import torch

from blocklora.adapters.adapter import Adapter
from blocklora.adapters.config import AdapterConfig
from blocklora.backbones.model import Backbone, build_open_clip
from blocklora.backbones.shape import ClipConfig, TowerConfig
from blocklora.engine.recipe import Recipe

SHAPE = ClipConfig(
    name="tiny",
    embed_dim=24,
    quick_gelu=True,
    image_size=32,
    patch_size=8,
    vision=TowerConfig(width=32, layers=3, heads=2),
    text=TowerConfig(width=16, layers=2, heads=2),
    context_length=20,
    vocab_size=49408,
)
LORA = AdapterConfig(
    rank=4,
    blocks=1,
    partition="rank",
    alpha=1.0,
    dropout=0.0,
    matrices=("q", "k", "v"),
    layers="all",
    towers=("vision", "text"),
)
RECIPE = Recipe(
    prompt="a {}",
    iterations_per_shot=12,
    batch_size=4,
    learning_rate=1e-2,
    final_learning_rate=1e-6,
    weight_decay=1e-2,
    betas=(0.9, 0.999),
    crop_scale=(0.5, 1.0),
    flip_probability=0.5,
    logit_scale=100.0,
    log_every=5,
)


def tiny_backbone(seed: int = 0, shape: ClipConfig = SHAPE) -> Backbone:
    """Random weights with no zero and no unit vectors, so that no term can hide."""
    torch.manual_seed(seed)
    weights = build_open_clip(shape).state_dict()
    for name, value in weights.items():
        if name.endswith((".bias", "in_proj_bias", "ln_1.weight", "ln_2.weight")):
            weights[name] = value + 0.1 * torch.randn_like(value)
    return Backbone(shape, weights, sha256="0" * 64)


def trained_adapter(config: AdapterConfig, backbone: Backbone, seed: int = 0) -> Adapter:
    """Return an adapter whose factors are all away from zero, arms different."""
    generator = torch.Generator().manual_seed(seed)
    adapter = Adapter.initialise(config, backbone.config.tower_shapes, generator)
    for factors in adapter.towers.values():
        with torch.no_grad():
            factors.up.normal_(0, 0.5, generator=generator)
    return adapter
