"""Runs from their files to their files: train, test, and write the record."""

import csv
import io
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import torch

from blocklora.adapters.adapter import Adapter
from blocklora.adapters.store import read_adapter_record, save_adapter
from blocklora.clip.prompts import class_prompts, tokenize
from blocklora.clip.weights import Backbone, load_backbone
from blocklora.data.manifest import classnames, iterate_manifest, read_shots
from blocklora.data.pixels import (
    ShotImages,
    evaluation_transform,
    open_shot_images,
    open_test_pixels,
)
from blocklora.errors import UserError
from blocklora.files import file_digest, read_json, write_json, write_text
from blocklora.study.model import Run, Study
from blocklora.study.provenance import run_provenance
from blocklora.training.batches import Batches
from blocklora.training.device import (
    device_name,
    peak_memory_bytes,
    require_device,
    reset_peak_memory,
)
from blocklora.training.engine import Engine, FastEngine
from blocklora.training.evaluate import Classifier
from blocklora.training.loop import CheckpointPolicy, History, train
from blocklora.training.randomness import torch_generator

logger = logging.getLogger(__name__)

HISTORY_COLUMNS = ("step", "loss", "train_accuracy", "learning_rate", "seconds")


@dataclass(frozen=True)
class Compute:
    """How to compute, which changes no number but by rounding."""

    device: str
    precision: str
    engine: str
    workers: int


@dataclass(frozen=True)
class Task:
    """A classification task as every run on a dataset sees it.

    Attributes:
        backbone: CLIP weights.
        names: class names by label.
        prompts: token ids of each class prompt.
        pixels: preprocessed test images, uint8 (images, size, size, 3).
        labels: of the test images, int64 (images,).
    """

    backbone: Backbone
    names: list[str]
    prompts: list[list[int]]
    pixels: np.ndarray
    labels: np.ndarray


def load_task(study: Study, backbone_file: Path, manifest: Path, test_pixels: Path) -> Task:
    """Read what all runs of a backbone and dataset share.

    Raises:
        UserError: a file is missing or unreadable, or the pixels are not those of the manifest.
    """
    backbone = load_backbone(backbone_file)
    images = list(iterate_manifest(manifest))
    names = classnames(images)
    labels = np.array([image.label for image in images if image.split == "test"])
    pixels = open_test_pixels(test_pixels)
    size = backbone.config.image_size
    if pixels.shape != (len(labels), size, size, 3):
        raise UserError(
            f"{test_pixels}: holds images of shape {tuple(pixels.shape)}, but {manifest} lists "
            f"{len(labels)} test images and the backbone sees {size} × {size} pixels; delete the "
            "file and run again"
        )
    prompts = tokenize(class_prompts(names, study.recipe.prompt), backbone.config.context_length)
    return Task(backbone, names, prompts, pixels, labels)


def run_zero_shot(study: Study, run: Run, task: Task, compute: Compute, folder: Path) -> None:
    """Classify the test images by the prompts alone and write `metrics.json`."""
    require_device(compute.device, compute.precision)
    started, clock = datetime.now(UTC), monotonic()
    reset_peak_memory(compute.device)
    classifier = Classifier(task.backbone, None, task.prompts, compute.device, compute.precision)
    correct = classifier.correct(task.pixels, task.labels)
    seconds = monotonic() - clock
    cost = {
        "trainable_parameters": 0,
        "adapted_matrices": 0,
        "adapter_bytes": 0,
        "iterations": 0,
        "wall_seconds": seconds,
        "training_seconds": 0.0,
        "evaluation_seconds": seconds,
        "step_seconds": None,
        "peak_memory_bytes": peak_memory_bytes(compute.device),
        "planned_memory_bytes": None,
    }
    result = _result(task, correct, train_correct=None, train_images=0)
    record = _record(study, run, task, compute, started, result, cost)
    write_json(folder / "metrics.json", record)
    logger.info("run %s: %.2f %% of %d test images", run.folder, *_percent(task, correct))


def run_training(
    study: Study,
    run: Run,
    task: Task,
    compute: Compute,
    shots_list: Path,
    shots_pixels: Path,
    folder: Path,
    checkpoints: CheckpointPolicy,
    stop_signal: Callable[[], str | None],
    require_lock: Callable[[], None],
) -> None:
    """Train one adapter, test its last iterate once and write the run's three files.

    `metrics.json` is written last, so a folder that has it is complete; a run that is finished
    already, by the same digest, is left as it is. The caller holds the run's lock, and deletes
    the checkpoint when nothing can be lost any more.

    Raises:
        UserError: an input is unusable, the device is not there, or the loss is not finite.
        Interrupted: a signal asked for a stop, or the lock was lost, which `require_lock` says
            before anything is written; the work is in the checkpoint.
    """
    if is_finished(folder, checkpoints.run_digest):
        logger.info("run %s: finished before, left as it is", run.folder)
        return
    require_device(compute.device, compute.precision)
    started, clock = datetime.now(UTC), monotonic()
    reset_peak_memory(compute.device)
    images = _open_shots(shots_list, shots_pixels, task)
    config = study.methods[run.method].adapter
    shape = task.backbone.config
    adapter = Adapter.initialise(
        config,
        {t: (getattr(shape, t).layers, getattr(shape, t).width) for t in config.towers},
        torch_generator(run.seed, "initialisation"),
        compute.device,
    )
    recipe, steps = study.recipe, study.recipe.iterations_per_shot * run.shots
    history = train(
        build_engine(compute, task, adapter, recipe.logit_scale, run.seed),
        Batches(
            images,
            torch.from_numpy(images.labels),
            recipe,
            shape.image_size,
            run.seed,
            compute.workers,
        ),
        recipe,
        steps,
        run.folder,
        checkpoints,
        stop_signal,
    )
    trained = monotonic()
    classifier = Classifier(task.backbone, adapter, task.prompts, compute.device, compute.precision)
    correct = classifier.correct(task.pixels, task.labels)
    train_correct = sum(
        classifier.correct(batch, labels)
        for batch, labels in _evaluation_batches(images, shape.image_size)
    )
    evaluated = monotonic()

    require_lock()
    adapter_file = folder / "adapter.safetensors"
    save_adapter(
        adapter_file,
        adapter,
        shape.name,
        task.backbone.sha256,
        dataset=run.dataset,
        method=run.method,
        shots=run.shots,
        seed=run.seed,
        classnames=task.names,
        prompt=recipe.prompt,
    )
    write_text(folder / "history.csv", _history_csv(history))
    cost = {
        "trainable_parameters": adapter.trainable_parameters,
        "adapted_matrices": adapter.adapted_matrices,
        "adapter_bytes": adapter_file.stat().st_size,
        "iterations": steps,
        "wall_seconds": history.rows[-1]["seconds"] + evaluated - trained,
        "training_seconds": history.rows[-1]["seconds"],
        "evaluation_seconds": evaluated - trained,
        "step_seconds": history.step_seconds(),
        "peak_memory_bytes": peak_memory_bytes(compute.device),
        "planned_memory_bytes": None,
    }
    result = _result(task, correct, train_correct, len(images))
    record = _record(study, run, task, compute, started, result, cost, file_digest(shots_list))
    write_json(folder / "metrics.json", record)
    logger.info(
        "run %s: %.2f %% of %d test images, %.1f s",
        run.folder,
        *_percent(task, correct),
        monotonic() - clock,
    )


def is_finished(folder: Path, run_digest: str) -> bool:
    """Return whether the folder holds the complete result of exactly this run."""
    try:
        record = read_json(folder / "metrics.json")
        read_adapter_record(folder / "adapter.safetensors")
        found = record["provenance"]["run_digest"]
    except (UserError, KeyError, TypeError):
        return False
    return found == run_digest and (folder / "history.csv").exists()


def build_engine(
    compute: Compute, task: Task, adapter: Adapter, logit_scale: float, seed: int
) -> Engine:
    """Return the engine called `compute.engine` for a task."""
    kind: Any = FastEngine
    if compute.engine == "reference":
        from blocklora.training.reference import ReferenceEngine

        kind = ReferenceEngine
    return kind(
        task.backbone,
        adapter,
        task.prompts,
        logit_scale=logit_scale,
        seed=seed,
        device=compute.device,
        precision=compute.precision,
    )


def _open_shots(shots_list: Path, shots_pixels: Path, task: Task) -> ShotImages:
    """Return the training images of a run, checked against its shots list."""
    images = open_shot_images(shots_pixels)
    listed = read_shots(shots_list, "train")
    if [image.path for image in listed] != images.paths:
        raise UserError(
            f"{shots_pixels}: holds other images than {shots_list} lists; delete it and run again"
        )
    missing = sorted(set(range(len(task.names))) - set(images.labels.tolist()))
    if missing:
        raise UserError(f"{shots_list}: the class {task.names[missing[0]]!r} has no training image")
    return images


def _evaluation_batches(
    images: ShotImages, size: int, batch: int = 256
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the training images, not augmented but preprocessed like test images."""
    from PIL import Image

    for start in range(0, len(images), batch):
        chosen = range(start, min(start + batch, len(images)))
        pixels = [evaluation_transform(Image.fromarray(images.image(i)), size) for i in chosen]
        yield np.stack(pixels), images.labels[start : start + batch]


def _percent(task: Task, correct: int) -> tuple[float, int]:
    return 100 * correct / len(task.labels), len(task.labels)


def _result(
    task: Task, correct: int, train_correct: int | None, train_images: int
) -> dict[str, Any]:
    return {
        "test_accuracy": correct / len(task.labels),
        "test_correct": correct,
        "test_images": len(task.labels),
        "train_accuracy": None if train_correct is None else train_correct / train_images,
        "train_images": train_images,
        "classes": len(task.names),
    }


def _record(
    study: Study,
    run: Run,
    task: Task,
    compute: Compute,
    started: datetime,
    result: dict[str, Any],
    cost: dict[str, Any],
    shots_sha256: str | None = None,
) -> dict[str, Any]:
    """Return the content of `metrics.json` (docs/architecture.md)."""
    adapter = study.methods[run.method].adapter
    return {
        "schema": 1,
        "run": {"study": study.name, **vars(run)},
        "result": result,
        "adapter": None if adapter is None else adapter.to_json(),
        "cost": cost,
        "provenance": {
            **run_provenance(study, run, compute.precision, compute.engine),
            "backbone_sha256": task.backbone.sha256,
            "shots_sha256": shots_sha256,
            "device": compute.device,
            "device_name": device_name(compute.device),
            "started": started.isoformat(timespec="seconds"),
        },
    }


def _history_csv(history: History) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, HISTORY_COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(history.rows)
    return text.getvalue()
