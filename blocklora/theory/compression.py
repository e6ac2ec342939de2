"""The compressed sizes of all trained adapters of a study, and the bounds that follow from them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import lru_cache
from itertools import groupby
from typing import Any

import numpy as np
from tqdm import tqdm

from blocklora.adapters.adapter import Adapter
from blocklora.adapters.merge import merge
from blocklora.adapters.store import load_adapter
from blocklora.backbones.model import Backbone
from blocklora.backbones.prompts import class_prompts, tokenize
from blocklora.backbones.weights import load_backbone
from blocklora.data.manifest import classnames, iterate_manifest
from blocklora.data.pixels import open_shot_images, training_pixels
from blocklora.engine.classifier import Classifier
from blocklora.study.run import Run
from blocklora.theory.coding import compress
from blocklora.theory.context import Context, adapted_runs
from blocklora.theory.risk import guessing_error

MAX_LOSS = 0.01  # largest loss of training accuracy (a fraction) due to compression
DELTA = 0.05  # probability with which a bound may fail


def rows(context: Context) -> Iterator[dict[str, Any]]:
    """Yield the rows of compression.csv, grouped by backbone, dataset, shots and seed.

    Raises:
        UserError: A file that a row is computed from is missing or damaged, or an adapter belongs
            to another backbone.
    """

    def shots_list(run: Run) -> tuple[str, str, int, int]:
        return run.backbone, run.dataset, run.shots, run.seed

    load = lru_cache(maxsize=1)(load_backbone)
    runs = sorted((run for run, _ in adapted_runs(context)), key=shots_list)
    shown = tqdm(runs, desc="compressing", unit="run", disable=None, leave=False)
    for (name, dataset, shots, seed), members in groupby(shown, key=shots_list):
        backbone = load(context.results / f"backbones/{name}.safetensors")
        size, length = backbone.config.image_size, backbone.config.context_length
        names = classnames(iterate_manifest(context.manifest(dataset)))
        guessing = guessing_error(len(names))
        store = context.results / f"pixels/{dataset}/{shots}shot/seed{seed}.npz"
        images = open_shot_images(store)
        pixels = training_pixels(images, size, workers=1)[:]
        for run in members:
            recipe = context.study.methods[run.method].recipe
            prompts = tokenize(class_prompts(names, recipe.prompt), length)
            count = error_counter(
                backbone, prompts, recipe.logit_scale, pixels, images.labels, context
            )
            adapter = load_adapter(context.adapter(run), backbone.sha256)
            found = compress(adapter, count, len(images), MAX_LOSS, DELTA)
            yield {
                **asdict(run),
                "bits_per_weight": found.bits / adapter.trainable_parameters,
                "compressed_bits": found.bits,
                "train_error": found.train_error,
                "guessing_error": guessing,
                "bound": found.bound,
                "vacuous": found.bound >= guessing,
            }


def error_counter(
    backbone: Backbone,
    prompts: Sequence[Sequence[int]],
    logit_scale: float,
    pixels: np.ndarray,
    labels: np.ndarray,
    context: Context,
) -> Callable[[Adapter], int]:
    """Return a function that counts how many images the model with an adapter misclassifies.

    Args:
        backbone: The model without an adapter.
        prompts: The token ids of the prompt of each class.
        logit_scale: The factor of the cosines, which does not change the count.
        pixels: Preprocessed images, uint8 (images, size, size, 3).
        labels: The class of each image, int64 (images,).
        context: The device and the precision to compute with.
    """

    def count(adapter: Adapter) -> int:
        merged = replace(backbone, weights=merge(backbone.weights, adapter))
        classifier = Classifier(merged, prompts, logit_scale, context.device, context.precision)
        return int((classifier.predict(pixels)[0] != labels).sum())

    return count
