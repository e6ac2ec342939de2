"""Files with the predictions of a method for the images that it is tested on.

The images are in the order of the manifest or of the shots list. Each has its `label` and the
`predicted` class (both int32), and the `probability` of the predicted class (float32). The facts in
the metadata say which test the file is from and what the test cost. Accuracies and all other
results of a test are computed from these files.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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
        label: The class of each image, int32 (images,).
        predicted: The predicted class of each image, int32 (images,).
        probability: The probability of the predicted class, float32 (images,).
        facts: The identity of the test, class names, digests and costs (docs/architecture.md).
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
        """The number of images whose predicted class is their label."""
        return int((self.label == self.predicted).sum())

    @property
    def accuracy(self) -> float:
        """The fraction of the images whose predicted class is their label."""
        return self.correct / self.images


def write_predictions(path: str | Path, predictions: Predictions) -> None:
    """Write a file of predictions.

    Raises:
        UserError: The file cannot be written.
    """
    arrays = {
        name: np.ascontiguousarray(getattr(predictions, name), kind)
        for name, kind in DTYPES.items()
    }
    write_tensors(path, arrays, {"format": FORMAT, **predictions.facts})


def read_predictions(path: str | Path) -> Predictions:
    """Read a file of predictions.

    Raises:
        UserError: The file is missing, damaged or not a file of predictions.
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
        UserError: The file is missing or damaged.
    """
    return read_tensors(path, "file of predictions", REMEDY, facts_only=True)[0]


@contextmanager
def fields_of(path: Path, what: str) -> Iterator[None]:
    """Turn an error about a missing field into one that says that the file is not `what`.

    Raises:
        UserError: The block looked up a field that is missing, or a value has a wrong type.
    """
    try:
        yield
    except KeyError as error:
        raise UserError(f"{path}: not {what} (it has no field {error}); {REMEDY}") from None
    except TypeError as error:
        raise UserError(f"{path}: not {what} ({error}); {REMEDY}") from None
