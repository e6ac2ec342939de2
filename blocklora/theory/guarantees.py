"""The compression bound of every trained adapter of a study, from the study's files."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from blocklora.adapters.adapter import Adapter
from blocklora.adapters.store import load_adapter
from blocklora.backbones.model import Backbone
from blocklora.backbones.prompts import class_prompts, tokenize
from blocklora.backbones.weights import load_backbone
from blocklora.data.manifest import classnames, iterate_manifest
from blocklora.data.pixels import open_shot_images
from blocklora.engine.classifier import Classifier
from blocklora.runs.task import evaluation_batches
from blocklora.study.model import Run, Study
from blocklora.theory.compression import compress
from blocklora.theory.risk import guessing_error


def compression_rows(
    study: Study,
    results: Path,
    runs: Sequence[Run],
    device: str,
    precision: str,
    max_loss: float,
    delta: float,
) -> Iterator[dict[str, Any]]:
    """Yield the rows of compression.csv, runs of a backbone, dataset, shots and seed together.

    Args:
        study: the study of the runs.
        results: its folder, laid out as in docs/architecture.md.
        runs: those with an adapter.
        device: "cpu" or "cuda".
        precision: of the evaluation, best that of the runs.
        max_loss: how much larger the training error of the compressed adapter may be.
        delta: probability with which a bound may fail.

    Raises:
        UserError: a file of a run is missing, damaged or of another backbone.
    """

    def task(run: Run) -> tuple[str, str]:
        return run.backbone, run.dataset

    def sample(run: Run) -> tuple[int, int]:
        return run.shots, run.seed

    bar = tqdm(total=len(runs), desc="compressing", unit="run", disable=None, leave=False)
    for (name, dataset), of_task in groupby(sorted(runs, key=task), key=task):
        backbone = load_backbone(results / "backbones" / f"{name}.safetensors")
        names = classnames(iterate_manifest(results / "data" / dataset / "manifest.csv"))
        prompts = tokenize(
            class_prompts(names, study.recipe.prompt), backbone.config.context_length
        )
        for (shots, seed), members in groupby(sorted(of_task, key=sample), key=sample):
            store = results / "pixels" / dataset / f"{shots}shot" / f"seed{seed}.npz"
            images = open_shot_images(store)
            batches = evaluation_batches(images, backbone.config.image_size)
            pixels, labels = np.concatenate([batch for batch, _ in batches]), images.labels
            count = error_counter(backbone, prompts, pixels, labels, device, precision)
            for run in members:
                path = results / "runs" / run.folder / "adapter.safetensors"
                adapter = load_adapter(path, backbone.sha256)
                found = compress(adapter, count, len(labels), max_loss, delta)
                guessing = guessing_error(len(names))
                yield {
                    **asdict(run),
                    "bits_per_weight": found.bits / adapter.trainable_parameters,
                    "compressed_bits": found.bits,
                    "train_error": found.train_error,
                    "guessing_error": guessing,
                    "bound": found.bound,
                    "vacuous": found.bound >= guessing,
                }
                bar.update()
    bar.close()


def error_counter(
    backbone: Backbone,
    prompts: Sequence[Sequence[int]],
    pixels: np.ndarray,
    labels: np.ndarray,
    device: str,
    precision: str,
) -> Callable[[Adapter], int]:
    """Return a function that counts the images an adapted model misclassifies."""

    def count(adapter: Adapter) -> int:
        classifier = Classifier(backbone, adapter, prompts, device, precision)
        return len(labels) - classifier.correct(pixels, labels)

    return count
