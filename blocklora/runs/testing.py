"""Tests of what was fitted, from its files to files of predictions."""

import logging
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic

import numpy as np

from blocklora.data.preprocess import preprocessed
from blocklora.methods import METHODS
from blocklora.methods.base import Compute, Shots, Task
from blocklora.runs.device import device_name, peak_memory, require_device, reset_peak_memory
from blocklora.runs.energy import energy_joules, energy_since
from blocklora.runs.predictions import Predictions, write_predictions
from blocklora.runs.task import TestImages
from blocklora.study.digests import test_digest
from blocklora.study.model import Study
from blocklora.study.run import Run, Test

logger = logging.getLogger(__name__)


def run_tests(
    study: Study,
    run: Run,
    keys: Mapping[Test, str],
    task: Task,
    images: TestImages,
    shots: Shots | None,
    compute: Compute,
    runs: Path,
) -> None:
    """Do tests of one run that share a task, and write their predictions.

    Args:
        study: the study.
        run: the run, of which a complete fit is there if it needs one.
        keys: the tests, and the digest of all that each depends on.
        task: the classification task.
        images: the test images of the dataset.
        shots: the training images of the run; needed for tests of the part "train".
        compute: device, precision, engine and threads.
        runs: folder of all runs, in which the fit of the run is.

    Raises:
        UserError: the device is not there, or the fit is damaged.
    """
    require_device(compute.device, compute.precision)
    started, clock = datetime.now(UTC), monotonic()
    reset_peak_memory(compute.device)
    energy = energy_joules(compute.device)
    named = study.methods[run.method]
    method = METHODS[named.kind]
    learned = None
    if method.trained:
        learned = method.load(runs / run.folder, task.backbone, named.config)
    classifier = method.classifier(learned, named.recipe, task, compute.device, compute.precision)
    size = task.backbone.config.image_size
    for test, key in keys.items():
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
            "key": key,
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
