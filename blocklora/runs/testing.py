"""Testing a method on images, and writing its predictions."""

import logging
from collections.abc import Iterable, Mapping
from time import monotonic
from typing import TYPE_CHECKING

import numpy as np

from blocklora.data.preprocess import preprocessed
from blocklora.methods import METHODS
from blocklora.runs.device import Meter
from blocklora.runs.predictions import Predictions, write_predictions
from blocklora.study.digests import test_digest
from blocklora.study.run import Run, Test

if TYPE_CHECKING:
    from blocklora.runs.job import Job

logger = logging.getLogger(__name__)


def run_tests(job: "Job", run: Run, keys: Mapping[Test, str]) -> None:
    """Do tests of a run and write their predictions; `keys` has what identifies each of them.

    Raises:
        UserError: The device is not available, or the fit is damaged.
    """
    (task, test_images), compute, clock = job.loaded, job.compute, monotonic()
    meter, named = Meter(compute), job.study.methods[run.method]
    method = METHODS[named.kind]
    learned = None
    if method.trained:
        learned = method.load(job.runs / run.folder, task.backbone, named.config)
    classifier = method.classifier(learned, named.recipe, task, compute.device, compute.precision)
    for test, key in keys.items():
        if test.part == "test":
            batches: Iterable[np.ndarray] = [test_images.pixels]
            labels, images = test_images.labels, "test"
        else:
            shots = job.shots(run)
            batches = preprocessed(shots.images, task.backbone.config.image_size)
            labels, images = shots.labels, "training"
        found = [classifier.predict(batch) for batch in batches]
        predicted, probability = (np.concatenate(parts) for parts in zip(*found, strict=True))
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
        predictions = Predictions(labels, predicted, probability, facts)
        write_predictions(job.runs / test.file, predictions)
        share, count = 100 * predictions.accuracy, predictions.images
        text = "run %s: %.2f %% of %d %s images of %s"
        logger.info(text, run.folder, share, count, images, test.dataset)
        clock = monotonic()
