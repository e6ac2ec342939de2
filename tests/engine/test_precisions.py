"""Training in 16 bits learns what training in fp32 learns."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from blocklora.adapters.adapter import Adapter
from blocklora.engine.batches import Batches
from blocklora.engine.fast import FastEngine
from blocklora.engine.loop import train
from blocklora.engine.randomness import torch_generator
from tests.tiny import LORA, RECIPE, tiny_backbone

STEPS, CLASSES = 40, 3
PROMPTS = [[1, 320 + label, 49407] for label in range(CLASSES)]
CONFIG = replace(LORA, blocks=2, dropout=0.25)


class Pictures:
    """Noise of one colour for each class."""

    def __init__(self):
        generator = np.random.default_rng(0)
        noise = generator.integers(0, 90, (12, 40, 36, 3))
        colours = 120 * np.eye(3, dtype=int)[np.arange(12) % CLASSES]
        self.pixels = (noise + colours[:, None, None]).astype(np.uint8)

    def __len__(self):
        return len(self.pixels)

    def image(self, index):
        return self.pixels[index]


def trained(precision):
    """Return the dense updates and the losses of a training."""
    backbone = tiny_backbone()
    shapes, start = backbone.config.tower_shapes, torch_generator(1, "initialisation")
    adapter = Adapter.initialise(CONFIG, shapes, start)
    options = {"logit_scale": 20.0, "seed": 1, "precision": precision}
    engine = FastEngine(backbone, adapter, PROMPTS, **options)
    labels = torch.arange(12) % CLASSES
    batches = Batches(Pictures(), labels, RECIPE, 32, seed=1, workers=0)
    history = train(engine, batches, replace(RECIPE, log_every=4), STEPS)
    updates = torch.stack([update.norm() for _, update in adapter.updates()])
    dense = torch.cat([update.flatten() for _, update in adapter.updates()])
    return dense, updates, [row["loss"] for row in history.rows]


@pytest.fixture(scope="module")
def exact():
    return trained("fp32")


@pytest.mark.parametrize(("precision", "tolerance"), [("fp16", 0.01), ("bf16", 0.3)])
def test_training_in_16_bits_ends_near_that_in_fp32(exact, precision, tolerance):
    """The tolerance is relative to the norm of all updates, after losses have halved.

    If the loss scaler skipped only the first two steps in fp16, the difference would be 0.4.
    """
    wanted, norms, losses = exact
    assert losses[-1] < 0.5 * losses[0]
    assert norms.min() > 0
    found, _, other = trained(precision)
    assert (found - wanted).norm() < tolerance * wanted.norm()
    assert other == pytest.approx(losses, rel=tolerance)
