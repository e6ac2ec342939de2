"""Fits, from their files to their files: what a method learns, its history and its record."""

import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic

from blocklora.csvfiles import write_rows
from blocklora.fields import to_values
from blocklora.files import write_json
from blocklora.methods import METHODS
from blocklora.methods.base import Compute, Shots, Task
from blocklora.provenance import package_versions
from blocklora.runs.device import device_name, peak_memory, require_device, reset_peak_memory
from blocklora.runs.energy import energy_joules, energy_since
from blocklora.runs.keeper import CheckpointKeeper
from blocklora.runs.record import HISTORY, HISTORY_COLUMNS, RECORD, SCHEMA
from blocklora.study.digests import fit_code, fit_digest
from blocklora.study.model import Study
from blocklora.study.run import Run

logger = logging.getLogger(__name__)


def fit_run(
    study: Study,
    run: Run,
    task: Task,
    shots: Shots,
    compute: Compute,
    inputs: Mapping[str, str],
    folder: Path,
    keeper: CheckpointKeeper,
) -> None:
    """Fit the method of a run and write what it learned, its history and its record.

    The record is written last, so that a folder which has it is complete. The caller holds the
    run's lock, and deletes the checkpoint when nothing can be lost any more. Nothing of the test
    images is known here, and nothing of the study is written but what the run depends on.

    Args:
        study: the study.
        run: the run.
        task: the classification task.
        shots: the training images.
        compute: device, precision, engine and threads.
        inputs: digests of the files that the fit depends on, by their names in the record.
        folder: the folder of the run.
        keeper: keeps the unfinished work, under the key of the run.

    Raises:
        UserError: the device is not there, or the loss is not finite.
        Interrupted: a signal asked for a stop, and the work is in the checkpoint; or the lock was
            lost, and nothing is written any more.
    """
    require_device(compute.device, compute.precision)
    named = study.methods[run.method]
    method = METHODS[named.kind]
    started = datetime.now(UTC)
    reset_peak_memory(compute.device)
    # What a run that is taken up again drew before is not known.
    energy = None if keeper.path.exists() else energy_joules(compute.device)
    clock = monotonic()
    fit = method.fit(named.config, named.recipe, task, shots, compute, keeper)
    history, seconds = fit.history, monotonic() - clock
    if history is not None:  # an earlier attempt took some of the time
        seconds = history.rows[-1]["seconds"]
    memory = peak_memory(compute.device)
    keeper.require_lock()
    facts = {
        "dataset": run.dataset,
        "method": run.method,
        "shots": run.shots,
        "seed": run.seed,
        "classnames": task.names,
        "prompt": named.recipe.prompt,
        "logit_scale": named.recipe.logit_scale,
    }
    method.save(fit, folder, task.backbone, facts)
    write_rows(folder / HISTORY, HISTORY_COLUMNS, history.rows if history else [])
    record = {
        "schema": SCHEMA,
        "run": vars(run),
        "method": named.values,
        "recipe": to_values(named.recipe),
        "images": {"train_images": len(shots.images), "classes": len(task.names)},
        "cost": {
            **fit.facts,
            "adapter_bytes": sum((folder / name).stat().st_size for name in method.files),
            "training_seconds": seconds,
            "step_seconds": history and history.step_seconds(),
            **memory,
            "energy_joules": energy_since(energy, compute.device),
        },
        "provenance": {
            "key": keeper.key,
            "fit_digest": fit_digest(study, run, compute.precision, compute.engine),
            "code_digest": fit_code(named.kind, compute.engine),
            "precision": compute.precision,
            "engine": compute.engine,
            "versions": package_versions(),
            **inputs,
            "device_name": device_name(compute.device),
            "device": compute.device,
            "started": started.isoformat(timespec="seconds"),
        },
    }
    write_json(folder / RECORD, record)
    logger.info("run %s: fitted in %.1f s", run.folder, seconds)
