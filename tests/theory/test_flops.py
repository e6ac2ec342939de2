from dataclasses import replace

import pytest
import torch

from blocklora.adapters.adapter import Adapter
from blocklora.adapters.config import AdapterConfig
from blocklora.backbones.shape import ClipConfig, TowerConfig
from blocklora.engine.fast import Chunks, FastEngine
from blocklora.theory.counting import flop_counter
from blocklora.theory.flops import step_flops, tower_flops
from tests.tiny import LORA, SHAPE, tiny_backbone

VIT_B16 = ClipConfig(
    name="ViT-B-16-quickgelu",
    embed_dim=512,
    quick_gelu=True,
    image_size=224,
    patch_size=16,
    vision=TowerConfig(768, 12, 12),
    text=TowerConfig(512, 12, 8),
    context_length=77,
    vocab_size=49408,
)


@pytest.fixture(scope="module")
def backbone():
    return tiny_backbone()


@pytest.mark.parametrize("chunks", [Chunks(), Chunks(tokens=5), Chunks(tokens=5, images=2)])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"dropout": 0.25},
        {"rank": 4, "blocks": 2, "dropout": 0.25},
        {"rank": 3, "blocks": 4, "partition": "input"},
        {"matrices": ("q", "k", "v", "o"), "layers": (1, 1)},
        {"matrices": ("o",), "layers": (0, 1), "dropout": 0.25},
        {"matrices": ("k", "o"), "towers": ("vision",)},
        {"matrices": ("q",), "towers": ("text",), "layers": (1, 1)},
    ],
)
def test_formula_equals_the_products_torch_counts(backbone, changes, chunks):
    config = replace(LORA, **changes)
    prompts = [[1, 2, 3], [1, 4, 3], [1, 5, 6, 7, 3], [1, 2, 3]]
    adapter = Adapter.initialise(config, backbone.config.tower_shapes, torch.Generator())
    engine = FastEngine(backbone, adapter, prompts, logit_scale=1.0, seed=0, chunks=chunks)
    images = torch.zeros(5, 32, 32, 3, dtype=torch.uint8)
    with flop_counter() as counter:
        engine.step(
            images, torch.zeros(5, dtype=torch.long), 0, torch.amp.GradScaler(enabled=False)
        )
    tokens = engine.vision.tokens
    recomputed = {  # all chunks but the last: the longest prompt, and two of five images
        "text": [(2, 3)] if chunks.tokens else [],
        "vision": [(3, tokens)] if chunks.images else [],
    }
    formula = step_flops(SHAPE, config, 5, 4, [(2, 3), (1, 5)], recomputed)
    assert counter.get_total_flops() == formula.total


@pytest.mark.parametrize(
    ("tower", "tokens", "published"), [("vision", 197, 35.13e9), ("text", 77, 5.96e9)]
)
def test_forward_of_a_vit_b16_costs_what_is_published(tower, tokens, published):
    # mlfoundations/open_clip@3b37473:docs/model_profile.csv, columns image_gflops and text_gflops
    # (fvcore). There the last block is run for every token, here for the pooled one.
    shape = getattr(VIT_B16, tower)
    other = "text" if tower == "vision" else "vision"
    frozen, thin = tower_flops(shape, replace(LORA, towers=(other,)), tower, [(1, tokens)])
    whole_block = 20 * shape.width**2 * (tokens - 1) + 4 * shape.width * tokens * (tokens - 1)
    outside = 2 * shape.width * 512 + (2 * 196 * 768 * 768 if tower == "vision" else 0)
    assert frozen.forward + whole_block + outside == pytest.approx(published, rel=0.01)
    assert frozen.backward == thin.total == 0


def test_a_step_grows_linearly_with_images_and_prompts():
    config = AdapterConfig(**{**LORA.__dict__, "blocks": 2})
    one = step_flops(VIT_B16, config, 1, 7, [(3, 5), (4, 9)])
    many = step_flops(VIT_B16, config, 32, 70, [(30, 5), (40, 9)])
    assert many.vision.total == 32 * one.vision.total
    assert many.text.total == 10 * one.text.total


def test_rank_partition_costs_what_lora_of_its_merged_rank_costs():
    prompts = [(100, 8)]
    block = replace(LORA, rank=8, blocks=4)
    assert step_flops(VIT_B16, block, 32, 100, prompts) == step_flops(
        VIT_B16, replace(LORA, rank=2), 32, 100, prompts
    )
