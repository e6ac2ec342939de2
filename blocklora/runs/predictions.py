"""Predictions: what a fitted method says of each image it was tested on.

A file of predictions holds one entry for each image, in the order of the manifest or of the shots
list: `label` (int32) and `predicted` (int32), which number the classes, and `probability`
(float32), that of the predicted class. Its facts say which test it is of, by which digest, and what
the test cost. Accuracies, and everything else that is said of a test, are computed from here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from blocklora.errors import UserError
from blocklora.tensorfiles import read_tensors, write_tensors

FORMAT = "blocklora-predictions-1"
REMEDY = "delete it and run again"
DTYPES = {"label": np.int32, "predicted": np.int32, "probability": np.float32}


@dataclass(frozen=True)
class Predictions:
    """The predictions of one test.

    Attributes:
        label: class of each image, int32 (images,).
        predicted: the class it was taken for, int32 (images,).
        probability: the probability of that class, float32 (images,).
        facts: the identity of the test, class names, digests and costs (docs/architecture.md).
    """

    label: np.ndarray
    predicted: np.ndarray
    probability: np.ndarray
    facts: Mapping[str, Any]

    @property
    def images(self) -> int:
        """The number of images."""
        return len(self.label)

    @property
    def correct(self) -> int:
        """How many images were given their label."""
        return int((self.label == self.predicted).sum())

    @property
    def accuracy(self) -> float:
        """The share of the images that were given their label, from 0 to 1."""
        return self.correct / self.images


def write_predictions(path: str | Path, predictions: Predictions) -> None:
    """Write a file of predictions."""
    arrays = {
        name: np.ascontiguousarray(getattr(predictions, name), kind)
        for name, kind in DTYPES.items()
    }
    write_tensors(path, arrays, {"format": FORMAT, **predictions.facts})


def read_predictions(path: str | Path) -> Predictions:
    """Read a file of predictions.

    Raises:
        UserError: the file is missing, damaged or not one of predictions.
    """
    facts, arrays = read_tensors(path, "file of predictions", REMEDY)
    if facts.pop("format", None) != FORMAT or arrays.keys() != DTYPES.keys():
        raise UserError(f"{path}: not a file of predictions; {REMEDY}")
    if len({array.shape for array in arrays.values()}) != 1 or not len(arrays["label"]):
        raise UserError(f"{path}: its parts do not fit together; {REMEDY}")
    return Predictions(**arrays, facts=facts)


def read_test_facts(path: str | Path) -> dict[str, Any]:
    """Return the facts of a file of predictions without reading its arrays.

    Raises:
        UserError: the file is missing or damaged.
    """
    return read_tensors(path, "file of predictions", REMEDY, facts_only=True)[0]
