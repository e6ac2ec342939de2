"""What the benchmark trains: CLIP-LoRA's adapter by the protocol of its paper.

`studies/paper.yaml` has the same values. They are repeated here because study files are read with
packages that the benchmark does without.
"""

from blocklora.adapters.config import AdapterConfig
from blocklora.engine.recipe import Recipe

ADAPTER = AdapterConfig(
    rank=2,
    blocks=1,
    partition="rank",
    alpha=1.0,
    dropout=0.25,
    matrices=("q", "k", "v"),
    layers="all",
    towers=("vision", "text"),
)
RECIPE = Recipe(
    prompt="a photo of a {}.",
    iterations_per_shot=500,
    batch_size=32,
    learning_rate=2e-4,
    final_learning_rate=1e-6,
    weight_decay=1e-2,
    betas=(0.9, 0.999),
    crop_scale=(0.08, 1.0),
    flip_probability=0.5,
    logit_scale=100.0,
    log_every=50,
)
SHOTS = (1, 2, 4, 8, 16)
SEEDS = 3
METHODS = 2  # CLIP-LoRA and Block-LoRA, which take the same steps
# The numbers of classes of the datasets with the shortest and the longest steps.
EUROSAT_CLASSES, IMAGENET_CLASSES = 10, 1000
IMAGENET_TEST = 50_000  # images
