"""Collects the records and predictions of all runs of a study in one table, `runs.csv`."""

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
from blocklora.runs.predictions import REMEDY, Predictions, fields_of, read_predictions
from blocklora.runs.record import RECORD, SCHEMA
from blocklora.study.digests import test_digest
from blocklora.study.run import Run, Test
from blocklora.study.study import Study, load_study

logger = logging.getLogger(__name__)


def aggregate(study_path: Path, runs_folder: Path, output: Path, partial: bool = False) -> None:
    """Write a row for each run of a study to the CSV file `output`, in the study's order.

    A study may grow without its finished runs being repeated, so these may come from different
    versions of the study file. They must still be comparable: a method has the same configuration
    in all of them, a dataset the same test images, and a backbone the same weights.

    Raises:
        UserError: A run is missing (unless `partial`), unreadable, in the wrong place, or not
            comparable with the others.
    """
    study = load_study(study_path)
    found, missing = [], []
    for run in study.runs():
        if all((runs_folder / file).exists() for file in files_of_row(run)):
            path = runs_folder / run.folder / RECORD
            record = _read_record(path, study, run) if run.shots else {}
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
                f"{runs_folder}: {message}; finish them, or pass --partial to leave them out"
            )
        logger.warning(message)
    rows = [{name: value(run) for name, value in COLUMNS.items()} for run in found]
    write_rows(output, tuple(COLUMNS), rows)
    logger.info("%d runs in %s", len(found), output)


def files_of_row(run: Run) -> list[str]:
    """Return the files, below `runs/`, that the row of a run in runs.csv is made from."""
    record = [f"{run.folder}/{RECORD}"] if run.shots else []
    return [*record, *(test.file for test in run.own_tests)]


def _read_record(path: Path, study: Study, run: Run) -> Mapping[str, Any]:
    """Return the content of `fit.json` after checking that it is the record of `run`."""
    record = read_json(path)
    with fields_of(path, "the record of a run"):
        if record["schema"] != SCHEMA:
            raise UserError(
                f"{path}: this record has schema {record['schema']}, but this version reads "
                f"schema {SCHEMA}; {REMEDY}"
            )
        _check_identity(path, record["run"], vars(run))
        values = study.methods[run.method].values
        if record["method"] != values:
            raise UserError(
                f"{path}: this run was fitted with {record['method']}, but {study.path} now says "
                f"{values}; delete the record and run again"
            )
        seconds = record["cost"]["training_seconds"]
        if not (isinstance(seconds, int | float) and isfinite(seconds) and seconds >= 0):
            raise UserError(f"{path}: training_seconds is {seconds!r}, not a time; {REMEDY}")
        for field in ("key", "fit_digest", "code_digest", "backbone_sha256"):
            record["provenance"][field]  # raises an error if it is missing
    return record


def _read_test(test: Test, path: Path) -> Predictions:
    """Return the predictions in a file after checking that they are those of `test`."""
    predictions = read_predictions(path)
    facts = predictions.facts
    with fields_of(path, "the predictions of a run"):
        _check_identity(path, facts["run"], vars(test.run))
        _check_identity(path, facts, {"dataset": test.dataset, "part": test.part})
        classes = len(facts["classnames"])
        needed = ("key", "test_digest", "backbone_sha256", "seconds")
        for field in (*needed, "device_name", "precision", "engine"):
            facts[field]  # raises an error if it is missing
    for name in ("label", "predicted"):
        values = getattr(predictions, name)
        if values.min() < 0 or values.max() >= classes:
            raise UserError(
                f"{path}: there are {classes} classes, but a {name} is outside of them; {REMEDY}"
            )
    return predictions


def _check_identity(path: Path, found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    for key, value in expected.items():
        if found[key] != value:
            raise UserError(
                f"{path}: this file is for {key} {found[key]!r}, but its folder is for {key} "
                f"{value!r}; move or delete it and run again"
            )


def _check_comparable(runs: Sequence[Finished], folder: Path) -> None:
    """Check that all runs used the same images and classes of a dataset and weights of a backbone.

    Raises:
        UserError: Two runs differ in one of these.
    """
    seen: dict[str, tuple[Any, str]] = {}
    for finished in runs:
        run, tested = finished.run, finished.tested
        facts = {
            f"dataset {run.dataset}: numbers of test images": tested.images,
            f"dataset {run.dataset}: class names": tuple(tested.facts["classnames"]),
            f"dataset {run.dataset}: labels of test images": sha256(tested.label).hexdigest(),
            f"backbone {run.backbone}: weights": tested.facts["backbone_sha256"],
        }
        for what, value in facts.items():
            first, where = seen.setdefault(what, (value, run.folder))
            if first != value:
                shown = f" ({first} and {value})" if isinstance(value, int | str) else ""
                raise UserError(
                    f"{folder}: {what} differ between {where} and {run.folder}{shown}; their "
                    "accuracies cannot be compared, so run again what is out of date"
                )


def _warn_of_differences(study: Study, runs: Sequence[Finished]) -> None:
    """Log differences between runs that leave them comparable."""
    values: dict[str, set[str]] = defaultdict(set)
    stale = 0
    for finished in runs:
        facts = finished.tested.facts
        for field in ("device_name", "precision", "engine"):
            values[field.replace("_", " ")].add(facts[field])
        test = finished.run.own_tests[0]
        digest = test_digest(study, test, facts["precision"], facts["engine"])
        stale += facts["test_digest"] != digest
    for field, found in values.items():
        if len(found) > 1:
            shown = ", ".join(sorted(str(value)[:40] for value in found))
            logger.warning("runs differ in %s: %s", field, shown)
    if stale:
        logger.warning("%d runs were made by another version of the study or of the code", stale)
