"""Fitting and testing the method of a run, and writing what it learned and what it predicts."""

import logging
from collections.abc import Mapping
from time import monotonic
from typing import TYPE_CHECKING

from blocklora.csvfiles import write_rows
from blocklora.fields import to_values
from blocklora.files import write_json
from blocklora.methods import METHODS
from blocklora.provenance import package_versions
from blocklora.runs.device import Meter
from blocklora.runs.keeper import CheckpointKeeper
from blocklora.runs.predictions import Predictions, write_predictions
from blocklora.runs.record import HISTORY, HISTORY_COLUMNS, RECORD, SCHEMA
from blocklora.runs.task import tested_shots
from blocklora.study.digests import fit_code, fit_digest, test_digest
from blocklora.study.run import Run, Test

if TYPE_CHECKING:
    from blocklora.runs.job import Job

logger = logging.getLogger(__name__)


def fit_run(job: "Job", run: Run, inputs: Mapping[str, str], keeper: CheckpointKeeper) -> None:
    """Fit the method of a run and write its files, the record last.

    A folder that has a record therefore has all files of the fit. The caller holds the run's lock,
    and deletes the checkpoint when it is no longer needed. The fit never sees the test images, and
    of the study its files contain only what the run depends on. `inputs` are the digests of the
    files that the fit depends on, by their names in the record.

    Raises:
        UserError: The device is not available, the checkpoint is damaged, the loss is not finite,
            or a file cannot be written.
        Interrupted: A signal asked the process to stop, and the work is in the checkpoint; or
            another process took over the lock, and nothing more is written.
    """
    study, compute, task, shots = job.study, job.compute, job.loaded[0], job.shots(run)
    folder, named = job.runs / run.folder, study.methods[run.method]
    method = METHODS[named.kind]
    meter, clock = Meter(compute, resumed=keeper.path.exists()), monotonic()
    fit = method.fit(named.config, named.recipe, task, shots, compute, keeper)
    history, seconds = fit.history, monotonic() - clock
    if history is not None:  # the history includes the time of interrupted attempts
        seconds = history.rows[-1]["seconds"]
    measured = meter.cost()
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
            **measured,
            **fit.facts,  # which may know better than the meter
            "adapter_bytes": sum((folder / name).stat().st_size for name in method.files),
            "training_seconds": seconds,
            "step_seconds": history and history.step_seconds(),
        },
        "provenance": {
            "key": keeper.key,
            "fit_digest": fit_digest(study, run, compute.precision, compute.engine),
            "code_digest": fit_code(named.kind, compute.engine),
            "precision": compute.precision,
            "engine": compute.engine,
            "versions": package_versions(),
            **inputs,
            **meter.identity(),
        },
    }
    write_json(folder / RECORD, record)
    logger.info("run %s: fitted in %.1f s", run.folder, seconds)


def run_tests(job: "Job", run: Run, keys: Mapping[Test, str]) -> None:
    """Do tests of a run and write their predictions; `keys` has the key of each test.

    Raises:
        UserError: The device is not available, the fit is damaged, or a file cannot be written.
    """
    (task, test_images), compute = job.loaded, job.compute
    meter, clock = Meter(compute), monotonic()
    named = job.study.methods[run.method]
    method = METHODS[named.kind]
    learned = None
    if method.trained:
        learned = method.load(job.runs / run.folder, task.backbone, named.config)
    classifier = method.classifier(learned, named.recipe, task, compute.device, compute.precision)
    for test, key in keys.items():
        if test.part == "test":
            images, kind = test_images, "test"
        else:
            workers = max(1, compute.workers)
            images, kind = tested_shots(job.shots(run), task, workers), "training"
        predicted, probability = classifier.predict(images.pixels)
        facts = {
            "run": vars(run),
            "dataset": test.dataset,
            "part": test.part,
            "classnames": task.names,
            "key": key,
            "test_digest": test_digest(job.study, test, compute.precision, compute.engine),
            "backbone_sha256": task.backbone.sha256,
            "seconds": monotonic() - clock,
            **meter.cost(),
            "precision": compute.precision,
            "engine": compute.engine,
            **meter.identity(),
        }
        predictions = Predictions(images.labels, predicted, probability, facts)
        write_predictions(job.runs / test.file, predictions)
        share, count = 100 * predictions.accuracy, predictions.images
        text = "run %s: classified %.2f %% of %d %s images of %s correctly"
        logger.info(text, run.folder, share, count, kind, test.dataset)
        meter, clock = Meter(compute), monotonic()  # for the next test
