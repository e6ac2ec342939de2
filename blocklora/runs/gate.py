"""The gate, which checks zero-shot accuracy against known values before anything is trained.

Zero-shot accuracy needs no training and no random numbers. If it is right, then so are the test
split, the class names, the preprocessing, the weights and the activation. The known values are in
`zero_shot_reference.csv`. If there are several for a backbone and a dataset, the first one decides:
values measured with the plain prompt `a photo of a {}.` come first, then those of the CLIP-LoRA
paper, whose prompts are tailored to the dataset. (For ImageNet, SUN397, Stanford Cars and
Caltech101 the tailored prompt is the plain one: KaiyangZhou/CoOp@ff61507:trainers/zsclip.py.)

The tolerances, in points:

- 1.0 against values with the same prompt. Test images and weights are the same, so nothing is
  sampled: the two sources of the table differ by at most 0.56 where their prompts agree (9 pairs).
- 10.0 against values with another prompt, since the prompt alone changes the accuracy by up to 9.4
  (EuroSAT, ViT-B/32). Such values are only reported; none of them decides.
"""

import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from blocklora.csvfiles import read_rows
from blocklora.errors import UserError
from blocklora.files import write_json
from blocklora.runs.predictions import Predictions, fields_of, read_predictions

REFERENCE_FILE = Path(__file__).with_name("zero_shot_reference.csv")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reference:
    """A known zero-shot accuracy, in percent; `prompt` is "plain" or "tailored"."""

    prompt: str
    accuracy_percent: float
    tolerance_points: float
    source: str


def gate(predictions: Path, backbone: str, dataset: str, mode: str, output: Path) -> None:
    """Compare the accuracy of zero-shot predictions with the known one and write a report.

    Raises:
        UserError: The predictions cannot be read or are of another run, or the accuracy differs by
            more than the tolerance and `mode` is "stop" instead of "warn". Then nothing is written.
    """
    tested = _zero_shot(predictions, backbone, dataset)
    references = load_references(backbone, dataset)
    report = compare(tested.accuracy, references)
    percent, where = report["accuracy_percent"], f"{dataset} with {backbone}"
    if report["status"] == "differs":
        known = references[0]
        message = (
            f"zero-shot accuracy of {where} is {percent:.2f} %, "
            f"{report['difference_points']:+.2f} points from the known "
            f"{known.accuracy_percent:g} % ({known.prompt} prompt; {known.source}); "
            f"{report['tolerance_points']:g} are tolerated ({predictions}). Likely causes: "
            "another test split or other class names, another preprocessing (bicubic resize, "
            "centre crop, normalisation), other weights, another activation (QuickGELU), or "
            "another prompt in the study"
        )
        if mode == "stop":
            raise UserError(
                f"{message}. To train anyway, set `gate: warn` in config.yaml, or pass --mode warn"
            )
        logger.warning("%s", message)
    else:
        logger.info("zero-shot accuracy of %s: %.2f %%, %s", where, percent, report["status"])
    which = {"backbone": backbone, "dataset": dataset, "test_images": tested.images}
    write_json(output, {**which, **report})


def load_references(backbone: str, dataset: str) -> list[Reference]:
    """Return the known values for a backbone and a dataset, the decisive one first."""
    return [
        Reference(
            row["prompt"],
            float(row["accuracy_percent"]),
            float(row["tolerance_points"]),
            row["source"],
        )
        for row in read_rows(REFERENCE_FILE, ("backbone", "dataset"))
        if (row["backbone"], row["dataset"]) == (backbone, dataset)
    ]


def compare(accuracy: float, references: list[Reference]) -> dict[str, Any]:
    """Compare an accuracy (a fraction) with the references, the first of which decides.

    The `status` of the report is "passed", "differs" or "no reference value". Differences are the
    measured accuracy minus the known one, in points.
    """
    percent = round(100 * accuracy, 6)
    differences = [round(percent - reference.accuracy_percent, 6) for reference in references]
    status, difference, allowed = "no reference value", None, None
    if references:
        difference, allowed = differences[0], references[0].tolerance_points
        status = "passed" if abs(difference) <= allowed else "differs"
    return {
        "accuracy_percent": percent,
        "status": status,
        "difference_points": difference,
        "tolerance_points": allowed,
        "references": [
            {**asdict(reference), "difference_points": difference}
            for reference, difference in zip(references, differences, strict=True)
        ],
    }


def _zero_shot(path: Path, backbone: str, dataset: str) -> Predictions:
    predictions = read_predictions(path)
    with fields_of(path, "the predictions of a run"):
        run = predictions.facts["run"]
        found = (run["backbone"], run["shots"], predictions.facts["dataset"])
    if found != (backbone, 0, dataset):
        raise UserError(
            f"{path}: these are predictions of {json.dumps(run)}, not of zero-shot classification "
            f"of {dataset} with {backbone}"
        )
    return predictions
