"""Tests of what was fitted, from its files to files of predictions."""

import logging
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic

import numpy as np

from blocklora.data.preprocess import preprocessed
from blocklora.errors import UserError
from blocklora.methods import METHODS
from blocklora.methods.base import Compute, Shots, Task
from blocklora.runs.device import device_name, peak_memory, require_device, reset_peak_memory
from blocklora.runs.energy import energy_joules, energy_since
from blocklora.runs.fit import is_fitted
from blocklora.runs.predictions import Predictions, read_test_facts, write_predictions
from blocklora.runs.task import TestImages
from blocklora.study.digests import fit_digest, test_digest
from blocklora.study.model import Study, Test

logger = logging.getLogger(__name__)


def missing_tests(study: Study, tests: Sequence[Test], runs: Path, compute: Compute) -> list[Test]:
    """Return the tests that have no predictions made by this study and this code."""

    def is_done(test: Test) -> bool:
        try:
            found = read_test_facts(runs / test.file)["test_digest"]
        except (UserError, KeyError):
            return False
        return found == test_digest(study, test, compute.precision, compute.engine)

    return [test for test in tests if not is_done(test)]


def run_tests(
    study: Study,
    tests: Sequence[Test],
    task: Task,
    images: TestImages,
    shots: Shots | None,
    compute: Compute,
    runs: Path,
) -> None:
    """Do tests of one run that share a task, and write their predictions.

    Args:
        study: the study.
        tests: the tests of one run.
        task: the classification task.
        images: the test images of the dataset.
        shots: the training images of the run; needed for tests of the part "train".
        compute: device, precision, engine and threads.
        runs: folder of all runs, in which the fit of the run is.

    Raises:
        UserError: the device is not there, or the fit is missing or damaged.
    """
    if not tests:
        return
    require_device(compute.device, compute.precision)
    started, clock = datetime.now(UTC), monotonic()
    reset_peak_memory(compute.device)
    energy = energy_joules(compute.device)
    run = tests[0].run
    named = study.methods[run.method]
    method = METHODS[named.kind]
    digest = fit_digest(study, run, compute.precision, compute.engine)
    learned = None
    if method.trained:
        folder = runs / run.folder
        if not is_fitted(study, run, folder, digest):
            raise UserError(
                f"run {run.folder}: there is no fit of it by this study and this code in {runs}; "
                "make it with `blocklora fit`"
            )
        learned = method.load(folder, task.backbone, named.config)
    classifier = method.classifier(learned, named.recipe, task, compute.device, compute.precision)
    size = task.backbone.config.image_size
    for test in tests:
        if test.part == "test":
            batches: Iterable[np.ndarray] = [images.pixels]
            answers = images.labels
        else:
            assert shots is not None
            batches, answers = preprocessed(shots.images, size), shots.labels
        found = [classifier.predict(batch) for batch in batches]
        predicted, probability = (np.concatenate(parts) for parts in zip(*found, strict=True))
        facts = {
            "run": vars(run),
            "dataset": test.dataset,
            "part": test.part,
            "classnames": task.names,
            "test_digest": test_digest(study, test, compute.precision, compute.engine),
            "backbone_sha256": task.backbone.sha256,
            "seconds": monotonic() - clock,
            **peak_memory(compute.device),
            "energy_joules": energy_since(energy, compute.device),
            "device": compute.device,
            "device_name": device_name(compute.device),
            "precision": compute.precision,
            "engine": compute.engine,
            "started": started.isoformat(timespec="seconds"),
        }
        predictions = Predictions(answers, predicted, probability, facts)
        write_predictions(runs / test.file, predictions)
        logger.info(
            "run %s: %.2f %% of %d %s images of %s",
            run.folder,
            100 * predictions.accuracy,
            predictions.images,
            "test" if test.part == "test" else "training",
            test.dataset,
        )
        clock = monotonic()
