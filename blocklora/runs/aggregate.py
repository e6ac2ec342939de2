"""From the records and predictions of single runs to one tidy table, `runs.csv`."""

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from hashlib import sha256
from math import isfinite
from pathlib import Path
from typing import Any

from blocklora.csvfiles import write_rows
from blocklora.errors import UserError
from blocklora.files import read_json
from blocklora.runs.columns import COLUMNS, Finished
from blocklora.runs.predictions import Predictions, read_predictions
from blocklora.runs.record import RECORD, SCHEMA
from blocklora.study.digests import test_digest
from blocklora.study.model import Study, load_study
from blocklora.study.run import Run, Test

AGAIN = "delete it and run again"

log = logging.getLogger(__name__)


def aggregate(study_path: Path, runs_folder: Path, output: Path, partial: bool = False) -> None:
    """Write a row for each run of a study to the CSV file `output`, in the study's order.

    Runs made with different study files may stand side by side, since a study may grow without
    its finished runs being redone; what must agree is what they are compared under: the method's
    configuration and, per dataset or backbone, the test images and the weights.

    Raises:
        UserError: a run is missing (unless `partial`), unreadable, of another run, or not
            comparable with the others.
    """
    study = load_study(study_path)
    found, missing = [], []
    for run in study.runs():
        files = files_of_row(run)
        if all((runs_folder / file).exists() for file in files):
            record = {}
            if run.method in study.fitted_methods:
                record = _read_record(runs_folder / run.folder / RECORD, study, run)
            tests = [_read_test(test, runs_folder / test.file) for test in run.own_tests]
            found.append(Finished(study.name, run, record, *tests))
        else:
            missing.append(run)
    _check_comparable(found, runs_folder)
    _warn_of_differences(study, found)
    if missing:
        listed = ", ".join(run.folder for run in missing[:5]) + (", …" if len(missing) > 5 else "")
        message = f"{len(missing)} of {len(missing) + len(found)} runs are missing: {listed}"
        if not partial:
            raise UserError(
                f"{runs_folder}: {message}; finish them, or pass --partial to publish without them"
            )
        log.warning(message)
    rows = [{name: value(run) for name, value in COLUMNS.items()} for run in found]
    write_rows(output, tuple(COLUMNS), rows)
    log.info("%d runs in %s", len(found), output)


def files_of_row(run: Run) -> list[str]:
    """Return the files below `runs/` that the row of a run in runs.csv is made of."""
    record = [f"{run.folder}/{RECORD}"] if run.shots else []
    return [*record, *(test.file for test in run.own_tests)]


def _read_record(path: Path, study: Study, run: Run) -> Mapping[str, Any]:
    """Return the content of `fit.json`, checked to be the record of `run` in `study`."""
    record = read_json(path)
    try:
        if record["schema"] != SCHEMA:
            raise UserError(
                f"{path}: record of schema {record['schema']}, this version reads {SCHEMA}; {AGAIN}"
            )
        _check_identity(path, record["run"], vars(run))
        values = study.methods[run.method].values
        if record["method"] != values:
            raise UserError(
                f"{path}: was fitted with {record['method']}, but {study.path} now says {values}; "
                "delete the record and run again"
            )
        seconds = record["cost"]["training_seconds"]
        if not (isinstance(seconds, int | float) and isfinite(seconds) and seconds >= 0):
            raise UserError(f"{path}: training_seconds is {seconds!r}, no time; {AGAIN}")
        for field in ("key", "fit_digest", "code_digest", "backbone_sha256"):
            record["provenance"][field]
    except (KeyError, TypeError) as error:
        raise UserError(f"{path}: not the record of a run (field {error}); {AGAIN}") from None
    return record


def _read_test(test: Test, path: Path) -> Predictions:
    predictions = read_predictions(path)
    try:
        _check_identity(path, predictions.facts["run"], vars(test.run))
        found = predictions.facts["dataset"], predictions.facts["part"]
        classes = len(predictions.facts["classnames"])
        for field in ("key", "test_digest", "backbone_sha256", "seconds"):
            predictions.facts[field]
    except (KeyError, TypeError) as error:
        raise UserError(f"{path}: not the predictions of a run (field {error}); {AGAIN}") from None
    if found != (test.dataset, test.part):
        raise UserError(
            f"{path}: holds predictions of the {found[1]} images of {found[0]}, its place is that "
            f"of the {test.part} images of {test.dataset}; move or delete it and run again"
        )
    for name in ("label", "predicted"):
        values = getattr(predictions, name)
        if values.min() < 0 or values.max() >= classes:
            raise UserError(f"{path}: a {name} is none of its {classes} classes; {AGAIN}")
    return predictions


def _check_identity(path: Path, found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    for key, value in expected.items():
        if found[key] != value:
            raise UserError(
                f"{path}: is of {key} {found[key]!r}, its place is that of {value!r}; move or "
                "delete it and run again"
            )


def _check_comparable(runs: Sequence[Finished], folder: Path) -> None:
    """Refuse different test sets of one dataset and different weights of one backbone."""
    seen: dict[tuple[str, str, str], tuple[Any, str]] = {}
    for finished in runs:
        run, tested = finished.run, finished.tested
        facts = {
            ("dataset", run.dataset, "numbers of test images"): tested.images,
            ("dataset", run.dataset, "class names"): tuple(tested.facts["classnames"]),
            ("dataset", run.dataset, "labels of test images"): sha256(tested.label).hexdigest(),
            ("backbone", run.backbone, "weights"): tested.facts["backbone_sha256"],
        }
        for key, value in facts.items():
            first, where = seen.setdefault(key, (value, run.folder))
            if first != value:
                kind, name, what = key
                shown = f", {first} and {value}" if isinstance(value, int | str) else ""
                raise UserError(
                    f"{folder}: {kind} {name}: {what} differ between {where} and {run.folder}"
                    f"{shown}; their accuracies cannot be compared, run again what is out of date"
                )


def _warn_of_differences(study: Study, runs: Sequence[Finished]) -> None:
    """Log what runs differ in without being incomparable."""
    values: dict[str, set[str]] = defaultdict(set)
    stale = 0
    for finished in runs:
        facts = finished.tested.facts
        for field in ("device_name", "precision", "engine"):
            values[field.replace("_", " ")].add(facts[field])
        test = finished.run.own_tests[0]
        digest = test_digest(study, test, facts["precision"], facts["engine"])
        stale += facts["test_digest"] != digest
        if finished.record:
            values["code digest"].add(finished.record["provenance"]["code_digest"])
    for field, found in values.items():
        if len(found) > 1:
            shown = ", ".join(sorted(str(value)[:40] for value in found))
            log.warning("runs differ in %s: %s", field, shown)
    if stale:
        log.warning("%d runs were made by another version of the study or of the code", stale)
