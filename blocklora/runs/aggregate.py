"""From the records of single runs to one tidy table."""

import csv
import io
import logging
from collections import defaultdict
from collections.abc import Iterator, Mapping
from math import isfinite
from pathlib import Path
from typing import Any

from blocklora.errors import UserError
from blocklora.files import read_json, write_text
from blocklora.study.model import Run, Study, load_study

SCHEMA = 1
RUN_COLUMNS = ("study", "backbone", "dataset", "method", "shots", "seed")
RESULT_COLUMNS = ("classes", "test_images", "test_accuracy", "train_images", "train_accuracy")
ADAPTER_COLUMNS = ("rank", "blocks", "partition")
COST_COLUMNS = (
    "trainable_parameters",
    "adapted_matrices",
    "adapter_bytes",
    "iterations",
    "wall_seconds",
    "training_seconds",
    "evaluation_seconds",
    "step_seconds",
    "peak_memory_bytes",
    "energy_joules",
)
PROVENANCE_COLUMNS = ("device", "device_name", "precision", "engine", "run_digest")
COLUMNS = RUN_COLUMNS + RESULT_COLUMNS + ADAPTER_COLUMNS + COST_COLUMNS + PROVENANCE_COLUMNS

log = logging.getLogger(__name__)


def aggregate(study_path: Path, runs_folder: Path, output: Path, partial: bool = False) -> None:
    """Write the records of a study's runs to the CSV file `output`, in the study's order.

    Runs made with different study files may stand side by side, since a study may grow without
    its finished runs being redone; what must agree is what they are compared under: the
    adapter's configuration and, per dataset or backbone, the test images and the weights.

    Raises:
        UserError: a record is missing (unless `partial`), unreadable, of another run, or not
            comparable with the others.
    """
    study = load_study(study_path)
    rows, missing, records = [], [], {}
    for run in study.runs():
        path = runs_folder / run.folder / "metrics.json"
        if not path.exists():
            missing.append(run)
            continue
        records[path] = record = read_record(path, study, run)
        rows.append(_row(record))
    _check_comparable(records)
    _warn_of_differences(study, records)
    if missing:
        listed = ", ".join(run.folder for run in missing[:5]) + (", …" if len(missing) > 5 else "")
        message = f"{len(missing)} of {len(missing) + len(rows)} runs are missing: {listed}"
        if not partial:
            raise UserError(
                f"{runs_folder}: {message}; finish them, or pass --partial to publish without them"
            )
        log.warning(message)
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(rows)
    write_text(output, stream.getvalue())
    log.info("%d runs in %s", len(rows), output)


def read_record(path: Path, study: Study, run: Run) -> Mapping[str, Any]:
    """Return the content of `metrics.json`, checked to be the record of `run` in `study`.

    Raises:
        UserError: it is not; the message names the file and what is wrong.
    """
    record = read_json(path)
    try:
        if record["schema"] != SCHEMA:
            raise UserError(
                f"{path}: record of schema {record['schema']}, this version reads {SCHEMA}; "
                "delete it and run again"
            )
        _check_fields(record)
        _check_identity(path, record, study, run)
        _check_numbers(path, record)
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{path}: not the record of a run (field {error}); delete it and run again"
        ) from None
    return record


def _row(record: Mapping[str, Any]) -> list[Any]:
    adapter = record["adapter"] or dict.fromkeys(ADAPTER_COLUMNS)
    return [
        *(record["run"][column] for column in RUN_COLUMNS),
        *(record["result"][column] for column in RESULT_COLUMNS),
        *(adapter[column] for column in ADAPTER_COLUMNS),
        *(record["cost"][column] for column in COST_COLUMNS),
        *(record["provenance"][column] for column in PROVENANCE_COLUMNS),
    ]


def _check_fields(record: Mapping[str, Any]) -> None:
    _row(record)
    for field in ("study_digest", "code_digest", "backbone_sha256"):
        record["provenance"][field]


def _check_identity(path: Path, record: Mapping[str, Any], study: Study, run: Run) -> None:
    expected = {"study": study.name, **vars(run)}
    for key, value in expected.items():
        if record["run"][key] != value:
            raise UserError(
                f"{path}: is the record of {key} {record['run'][key]!r}, its place is that of "
                f"{value!r}; move or delete it and run again"
            )
    adapter = study.methods[run.method].adapter
    if record["adapter"] != (adapter and adapter.to_json()):
        raise UserError(
            f"{path}: was trained with the adapter {record['adapter']}, but {study.path} now says "
            f"{adapter and adapter.to_json()}; delete the record and run again"
        )


def _check_numbers(path: Path, record: Mapping[str, Any]) -> None:
    result = record["result"]
    for key in ("test_accuracy", "train_accuracy"):
        value = result[key]
        if key == "train_accuracy" and value is None:
            continue  # zero-shot classification has no training images
        if not (isinstance(value, int | float) and isfinite(value) and 0 <= value <= 1):
            raise UserError(
                f"{path}: {key} is {value!r}, not a share between 0 and 1; delete it and run again"
            )
    share = result["test_correct"] / result["test_images"]
    if abs(share - result["test_accuracy"]) > 1e-9:
        raise UserError(
            f"{path}: test_accuracy {result['test_accuracy']} is not {result['test_correct']} of "
            f"{result['test_images']} images; delete it and run again"
        )


def _check_comparable(records: Mapping[Path, Mapping[str, Any]]) -> None:
    """Refuse different test sets of one dataset and different weights of one backbone."""
    seen: dict[tuple[str, str], tuple[Any, Path]] = {}
    for path, record in records.items():
        run, result = record["run"], record["result"]
        facts = {
            ("dataset", run["dataset"], "test images"): result["test_images"],
            ("dataset", run["dataset"], "classes"): result["classes"],
            ("backbone", run["backbone"], "weights"): record["provenance"]["backbone_sha256"],
        }
        for key, value in facts.items():
            first, where = seen.setdefault(key, (value, path))
            if first != value:
                kind, name, what = key
                raise UserError(
                    f"{kind} {name}: {what} differ between runs, {first} in {where} but {value} "
                    f"in {path}; their accuracies cannot be compared, run again what is out of date"
                )


def _warn_of_differences(study: Study, records: Mapping[Path, Mapping[str, Any]]) -> None:
    """Log what runs differ in without being incomparable."""
    values: dict[str, set[str]] = defaultdict(set)
    for record in records.values():
        for field in ("device_name", "precision", "engine", "code_digest"):
            values[field].add(record["provenance"][field])
    for field, found in values.items():
        if len(found) > 1:
            shown = ", ".join(sorted(str(value)[:40] for value in found))
            log.warning("runs differ in %s: %s", field.replace("_", " "), shown)
    stale = sum(1 for _ in _outdated(study, records))
    if stale:
        log.warning("%d runs were made by another version of the study or of the code", stale)


def _outdated(study: Study, records: Mapping[Path, Mapping[str, Any]]) -> Iterator[Path]:
    for path, record in records.items():
        run = Run(**{key: record["run"][key] for key in RUN_COLUMNS[1:]})
        made_by = record["provenance"]
        if made_by["run_digest"] != study.run_digest(run, made_by["precision"], made_by["engine"]):
            yield path
