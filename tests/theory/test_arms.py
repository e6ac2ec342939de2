"""Block-LoRA(r, n) by rank is LoRA(r/n) with the update scaled by n, shown on real training."""

from dataclasses import replace
from math import sqrt

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from blocklora.adapters.adapter import Adapter
from blocklora.adapters.algebra import delta
from blocklora.engine.fast import FastEngine
from blocklora.engine.loop import train
from tests.tiny import LORA, RECIPE, tiny_backbone

PROMPTS = [[49406, 320, 1125, 49407], [49406, 320, 2368, 539, 49407], [49406, 1929, 49407]]
STEPS = 25


@pytest.fixture(scope="module")
def backbone():
    return tiny_backbone()


class FixedBatches:
    """Random images, each class more often dark, light or grey."""

    def __init__(self):
        generator = torch.Generator().manual_seed(3)
        self.labels = torch.arange(9) % 3
        noise = torch.randint(0, 128, (9, 32, 32, 3), generator=generator)
        self.images = (noise + 60 * self.labels.view(-1, 1, 1, 1)).to(torch.uint8)

    def iterate(self, first, last):
        for _ in range(first, last):
            yield self.images, self.labels


GENTLE = replace(RECIPE, final_learning_rate=1e-4, weight_decay=0.1, logit_scale=20.0)


def engine_for(config, backbone, seed=1):
    adapter = Adapter.initialise(
        config, backbone.config.tower_shapes, torch.Generator().manual_seed(seed)
    )
    return FastEngine(backbone, adapter, PROMPTS, logit_scale=GENTLE.logit_scale, seed=seed)


def merged_rank(block):
    """The LoRA that Block-LoRA by rank is: n·alpha/√r is the scale of rank r/n, alpha·√n."""
    rank, alpha = block.rank // block.blocks, block.alpha * sqrt(block.blocks)
    return replace(block, rank=rank, blocks=1, alpha=alpha)


@pytest.mark.parametrize("blocks", [2, 4])
def test_arms_stay_equal_to_the_last_bit_in_the_training_loop(backbone, blocks):
    engine = engine_for(replace(LORA, blocks=blocks, dropout=0.25), backbone)
    history = train(engine, FixedBatches(), GENTLE, STEPS)
    assert history.rows[-1]["loss"] < history.rows[0]["loss"]
    for tower in engine.adapter.towers.values():
        arms = tower.up.detach()
        assert arms.abs().min() > 0
        assert torch.equal(arms, arms[:, :, :1].expand_as(arms))


@pytest.mark.parametrize("blocks", [2, 4])
def test_block_lora_trains_as_lora_of_the_merged_rank(backbone, blocks):
    block = replace(LORA, blocks=blocks, dropout=0.25)
    lora = merged_rank(block)
    assert lora.scale == pytest.approx(blocks * block.scale)
    engines = [engine_for(config, backbone) for config in (block, lora)]
    # The gradient of LoRA's B is that of all arms, n times that of one; AdamW divides by its size,
    # so that it steps alike if its epsilon is n times as large.
    optimizers = [
        torch.optim.AdamW(
            [
                {"params": [t.down for t in engine.adapter.towers.values()], "eps": 1e-8},
                {"params": [t.up for t in engine.adapter.towers.values()], "eps": epsilon},
            ],
            1e-2,
            weight_decay=0.1,
        )
        for engine, epsilon in zip(engines, (1e-8, blocks * 1e-8), strict=True)
    ]
    scaler = torch.amp.GradScaler(enabled=False)
    for step, (images, labels) in enumerate(FixedBatches().iterate(0, STEPS)):
        losses = []
        for engine, optimizer in zip(engines, optimizers, strict=True):
            optimizer.zero_grad()
            losses.append(engine.step(images, labels, step, scaler)[0])
            optimizer.step()
        torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-6)
    one, other = (engine.adapter for engine in engines)
    for name, tower in one.towers.items():
        torch.testing.assert_close(tower.down, other.towers[name].down, rtol=1e-4, atol=1e-6)
        arms = tower.up[:, :, :1]
        torch.testing.assert_close(arms, other.towers[name].up, rtol=1e-4, atol=1e-6)
    for (_, update), (_, expected) in zip(one.updates(), other.updates(), strict=True):
        torch.testing.assert_close(update, expected, rtol=1e-4, atol=1e-6)
    assert other.trainable_parameters < one.trainable_parameters


def test_the_default_epsilon_changes_next_to_nothing(backbone):
    block = replace(LORA, blocks=2)
    engines = [engine_for(config, backbone) for config in (block, merged_rank(block))]
    losses = [
        [row["loss"] for row in train(engine, FixedBatches(), GENTLE, STEPS).rows]
        for engine in engines
    ]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-3)


def regression(config, optimizer_of, steps=200):
    """Fit a matrix with an adapter in float64 and return its factors."""
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(6, 8, generator=generator, dtype=torch.float64)
    inputs = torch.randn(32, 8, generator=generator, dtype=torch.float64)
    (inner, width), up_shape = config.factor_shapes(8, 6)
    down = torch.randn(inner, width, generator=generator, dtype=torch.float64).requires_grad_()
    up = torch.zeros(up_shape, dtype=torch.float64, requires_grad=True)
    optimizer = optimizer_of(down, up)
    for _ in range(steps):
        optimizer.zero_grad()
        update = config.scale * delta(down, up, config)
        F.mse_loss(inputs @ update.T, inputs @ target.T).backward()
        optimizer.step()
    return down.detach(), up.detach()


def adamw(down, up, factor):
    groups = [{"params": [down]}, {"params": [up], "eps": factor * 1e-8}]
    return torch.optim.AdamW(groups, 1e-2, weight_decay=0.1)


def momentum(down, up, factor):
    groups = [{"params": [down]}, {"params": [up], "lr": 1e-2 / factor}]
    return torch.optim.SGD(groups, 1e-2, momentum=0.9)


@pytest.mark.parametrize("optimizer", [adamw, momentum])
@pytest.mark.parametrize(("rank", "blocks"), [(2, 2), (6, 3), (8, 4)])
def test_equivalence_in_float64_for_element_wise_optimizers(optimizer, rank, blocks):
    block = replace(LORA, rank=rank, blocks=blocks)
    down, up = regression(block, lambda a, b: optimizer(a, b, 1))
    single_down, single_up = regression(merged_rank(block), lambda a, b: optimizer(a, b, blocks))
    assert torch.equal(up, up[:1].expand_as(up))
    torch.testing.assert_close(down, single_down, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(up[:1], single_up, rtol=1e-8, atol=1e-10)
    assert single_up.abs().max() > 0.01


def test_one_arm_that_is_the_sum_gives_the_update_of_any_arms():
    block = replace(LORA, rank=4, blocks=2)
    generator = torch.Generator().manual_seed(0)
    down_shape, up_shape = block.factor_shapes(8, 6)
    down = torch.randn(down_shape, generator=generator, dtype=torch.float64)
    up = torch.randn(up_shape, generator=generator, dtype=torch.float64)
    lora = replace(block, rank=2, blocks=1)
    torch.testing.assert_close(
        delta(down, up, block), delta(down, up.sum(0, keepdim=True), lora), rtol=1e-12, atol=1e-12
    )
