"""Runs from their files to their files: train, test, and write the record."""

import logging
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any

import torch

from blocklora.adapters.adapter import Adapter
from blocklora.adapters.store import read_adapter_record, save_adapter
from blocklora.errors import UserError
from blocklora.files import file_digest, read_json, write_json, write_text
from blocklora.study.model import Run, Study
from blocklora.training.batches import Batches
from blocklora.training.device import peak_memory_bytes, require_device, reset_peak_memory
from blocklora.training.energy import energy_joules, energy_since
from blocklora.training.engine import Chunks, Engine, FastEngine
from blocklora.training.evaluate import Classifier
from blocklora.training.loop import CheckpointPolicy, History, train
from blocklora.training.plan import Setting, train_within_memory
from blocklora.training.randomness import torch_generator
from blocklora.training.record import Compute, history_csv, record_of, result_of
from blocklora.training.task import Task, evaluation_batches, open_shots

logger = logging.getLogger(__name__)


def run_zero_shot(study: Study, run: Run, task: Task, compute: Compute, folder: Path) -> None:
    """Classify the test images by the prompts alone and write `metrics.json`."""
    require_device(compute.device, compute.precision)
    started, clock = datetime.now(UTC), monotonic()
    reset_peak_memory(compute.device)
    energy = energy_joules(compute.device)
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
        "recorded_steps": None,
        "energy_joules": energy_since(energy, compute.device),
    }
    result = result_of(task, correct, train_correct=None, train_images=0)
    record = record_of(study, run, task, compute, started, result, cost)
    write_json(folder / "metrics.json", record)
    share = 100 * result["test_accuracy"]
    logger.info("run %s: %.2f %% of %d test images", run.folder, share, len(task.labels))


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
) -> None:
    """Train one adapter, test its last iterate once and write the run's three files.

    `metrics.json` is written last, so a folder that has it is complete; a run that is finished
    already, by the same digest, is left as it is. The caller holds the run's lock, and deletes
    the checkpoint when nothing can be lost any more.

    Raises:
        UserError: an input is unusable, the device is not there, or the loss is not finite.
        Interrupted: a signal asked for a stop, and the work is in the checkpoint; or the lock was
            lost, and nothing is written any more.
    """
    if is_finished(folder, checkpoints.run_digest):
        logger.info("run %s: finished before, left as it is", run.folder)
        return
    require_device(compute.device, compute.precision)
    started, clock = datetime.now(UTC), monotonic()
    reset_peak_memory(compute.device)
    # What a run that is taken up again drew before is not known.
    energy = None if checkpoints.path.exists() else energy_joules(compute.device)
    images = open_shots(shots_list, shots_pixels, task)
    recipe, steps = study.recipe, study.recipe.iterations_per_shot * run.shots
    config, shape = study.methods[run.method].adapter, task.backbone.config
    size = shape.image_size
    labels = torch.from_numpy(images.labels)
    for_gpu = compute.device == "cuda"
    batches = Batches(images, labels, recipe, size, run.seed, compute.workers, for_gpu)

    def attempt(chunks: Chunks) -> tuple[Adapter, History, bool | None]:
        adapter = Adapter.initialise(
            config,
            shape.tower_shapes,
            torch_generator(run.seed, "initialisation"),
            compute.device,
        )
        engine = build_engine(compute, task, adapter, recipe.logit_scale, run.seed, chunks)
        logger.info(
            "run %s: ready for its first step after %.1f s", run.folder, monotonic() - clock
        )
        history = train(engine, batches, recipe, steps, run.folder, checkpoints, stop_signal)
        return adapter, history, engine.recorded

    if compute.engine == "reference":
        (adapter, history, recorded), plan = attempt(Chunks()), None
    else:
        prompts = tuple(map(tuple, task.prompts))
        setting = Setting(shape, config, prompts, recipe.batch_size, compute.precision)
        (adapter, history, recorded), plan = train_within_memory(setting, compute.device, attempt)
    trained = monotonic()
    classifier = Classifier(task.backbone, adapter, task.prompts, compute.device, compute.precision)
    correct = classifier.correct(task.pixels, task.labels)
    train_correct = sum(
        classifier.correct(batch, labels) for batch, labels in evaluation_batches(images, size)
    )
    evaluated = monotonic()

    checkpoints.require_lock()
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
    write_text(folder / "history.csv", history_csv(history))
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
        "planned_memory_bytes": None if plan is None else plan.peak_bytes,
        "recorded_steps": recorded,
        "energy_joules": energy_since(energy, compute.device),
    }
    result = result_of(task, correct, train_correct, len(images))
    record = record_of(study, run, task, compute, started, result, cost, file_digest(shots_list))
    write_json(folder / "metrics.json", record)
    logger.info(
        "run %s: %.2f %% of %d test images, %.1f s",
        run.folder,
        100 * result["test_accuracy"],
        len(task.labels),
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
    compute: Compute, task: Task, adapter: Adapter, logit_scale: float, seed: int, chunks: Chunks
) -> Engine:
    """Return the engine called `compute.engine` for a task; the reference knows no chunks."""
    kind: Any = partial(FastEngine, chunks=chunks)
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
