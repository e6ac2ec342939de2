"""The files of a fit and its record `fit.json`, which count only if they are up to date."""

from pathlib import Path

from blocklora.errors import UserError
from blocklora.fields import to_values
from blocklora.files import read_json
from blocklora.methods import METHODS
from blocklora.runs.predictions import read_test_facts
from blocklora.study.digests import fit_code, fit_digest, test_digest
from blocklora.study.run import Run
from blocklora.study.study import Study

RECORD = "fit.json"
SCHEMA = 3
HISTORY = "history.csv"
HISTORY_COLUMNS = ("step", "loss", "train_accuracy", "learning_rate", "seconds")


def fit_files(study: Study, run: Run) -> list[str]:
    """Return the names of the files of a fit, the record last; none if the method has no fit."""
    method = METHODS[study.methods[run.method].kind]
    return [*method.files, HISTORY, RECORD] if method.trained else []


def failure_log(run: Run) -> str:
    """Return the path, below the results, of the log that a run leaves if its fit fails."""
    return f"logs/failed/{run.folder}.log"


def key_of_fit(study: Study, run: Run, runs: Path, digest: str) -> str | None:
    """Return the key of a fit in the folder `runs` that is complete and up to date, or None.

    It is up to date if its record has the given digest; see `fit_digest`.
    """
    try:
        record = read_json(runs / run.folder / RECORD)
        made_by = record["provenance"]
        if made_by["fit_digest"] == digest and _damage(study, run, runs, record) is None:
            return made_by["key"]
    except (OSError, UserError, KeyError, TypeError):
        pass
    return None


def key_of_test(path: Path) -> str | None:
    """Return the key of a file of predictions, or None if the file is missing or damaged."""
    try:
        return read_test_facts(path)["key"]
    except (UserError, KeyError):
        return None


def why_missing(study: Study, run: Run, runs: Path, precision: str, engine: str) -> str | None:
    """Return the reason why a run in the folder `runs` has to be computed, or None.

    A run is up to date if its files were made as the study and the configuration say. The files
    that it was computed from may be gone, so they are not checked.
    """
    if fit_files(study, run):
        digest = fit_digest(study, run, precision, engine)
        if key_of_fit(study, run, runs, digest) is None:
            return _why_not_fitted(study, run, runs, precision, engine)
    for test in run.own_tests:
        try:
            found = read_test_facts(runs / test.file)["test_digest"]
        except (UserError, KeyError):
            return "not tested"
        if found != test_digest(study, test, precision, engine):
            return "the code that tests, or something it depends on, has changed"
    return None


def _why_not_fitted(study: Study, run: Run, runs: Path, precision: str, engine: str) -> str:
    """Compare the record of a fit with the study and return the difference in words."""
    named = study.methods[run.method]
    now = {**named.values, **to_values(named.recipe), "precision": precision, "engine": engine}
    try:
        record = read_json(runs / run.folder / RECORD)
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
            return "the code that fits has changed"
        return _damage(study, run, runs, record) or (
            "its images, or the code that reads and draws them, have changed"
        )
    except (OSError, UserError):
        return "not fitted"
    except (KeyError, TypeError):
        return "its record was written by another version"


def _damage(study: Study, run: Run, runs: Path, record: dict) -> str | None:
    """Return the fault of the files beside the record of a fit in words, or None."""
    *learned, history, _ = (runs / run.folder / name for name in fit_files(study, run))
    if not all(path.exists() for path in (*learned, history)):
        return "not fitted"
    if sum(path.stat().st_size for path in learned) != record["cost"]["adapter_bytes"]:
        return "its files are damaged"
    return None
