"""The files that every fit leaves beside those of its method, and whether they are complete."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from blocklora.errors import UserError
from blocklora.fields import to_values
from blocklora.files import read_json
from blocklora.methods import METHODS
from blocklora.runs.predictions import read_test_facts
from blocklora.study.digests import fit_code, fit_digest, test_digest
from blocklora.study.model import Study
from blocklora.study.run import Run

RECORD = "fit.json"
SCHEMA = 3
HISTORY = "history.csv"
HISTORY_COLUMNS = ("step", "loss", "train_accuracy", "learning_rate", "seconds")


def fit_files(study: Study, run: Run) -> list[str]:
    """Return the names of the files that a fit leaves, the record last; none without a fit."""
    method = METHODS[study.methods[run.method].kind]
    return [*method.files, HISTORY, RECORD] if method.trained else []


def key_of_fit(study: Study, run: Run, runs: Path, digest: str) -> str | None:
    """Return the key of a fit that is complete and has this digest, None where there is none.

    Args:
        study: the study.
        run: the run.
        runs: folder of all runs.
        digest: that of the fit, see `fit_digest`.
    """
    *learned, history, record = (runs / run.folder / name for name in fit_files(study, run))
    try:
        found = read_json(record)
        size = sum(path.stat().st_size for path in learned)
        whole = history.exists() and found["cost"]["adapter_bytes"] == size
        if whole and found["provenance"]["fit_digest"] == digest:
            return found["provenance"]["key"]
    except (OSError, UserError, KeyError, TypeError):
        pass
    return None


def why_missing(study: Study, run: Run, runs: Path, precision: str, engine: str) -> str | None:
    """Return in words why a run has to be made, None if it is finished as the study says.

    What its files were made from is not looked at, which may not be there any more.

    Args:
        study: the study.
        run: the run.
        runs: folder of all runs.
        precision: the precision of the configuration.
        engine: the engine of the configuration.
    """
    digest = fit_digest(study, run, precision, engine)
    if fit_files(study, run) and not key_of_fit(study, run, runs, digest):
        try:
            record = read_json(runs / run.folder / RECORD)
        except UserError:
            return "not fitted"
        return _what_changed(study, run, runs, record, precision, engine)
    for test in run.own_tests:
        try:
            found = read_test_facts(runs / test.file)["test_digest"]
        except (UserError, KeyError):
            return "not tested"
        if found != test_digest(study, test, precision, engine):
            return "the code that tests, or what it depends on, changed"
    return None


def _what_changed(
    study: Study, run: Run, runs: Path, record: Mapping[str, Any], precision: str, engine: str
) -> str:
    """Return in words how the record of a fit differs from what the study says."""
    named = study.methods[run.method]
    now = {
        **named.values,
        **to_values(named.recipe),
        "precision": precision,
        "engine": engine,
    }
    try:
        made_by = record["provenance"]
        old = {**record["method"], **record["recipe"]}
        old |= {"precision": made_by["precision"], "engine": made_by["engine"]}
        changes = [
            f"{key} is {now.get(key)}, was {old.get(key)}"
            for key in dict.fromkeys([*now, *old])
            if now.get(key) != old.get(key)
        ]
        if changes:
            return "; ".join(changes)
        if made_by["code_digest"] != fit_code(named.kind, engine):
            return "the code that fits changed"
        size = record["cost"]["adapter_bytes"]
    except (KeyError, TypeError):
        return "its record is of another version"
    *learned, history, _ = (runs / run.folder / name for name in fit_files(study, run))
    if not all(path.exists() for path in (*learned, history)):
        return "not fitted"
    if sum(path.stat().st_size for path in learned) != size:
        return "its files are damaged"
    return "its images, or the code that reads and draws them, changed"


def key_of_test(path: Path) -> str | None:
    """Return the key of the predictions in a file, None where there are none."""
    try:
        return read_test_facts(path)["key"]
    except (UserError, KeyError):
        return None
