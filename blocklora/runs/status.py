"""How far a study is, read from its files alone: records, locks, checkpoints and logs."""

import re
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from itertools import product
from pathlib import Path
from statistics import median
from textwrap import shorten
from typing import Any

from blocklora.engine.engines import ENGINES
from blocklora.engine.precisions import PRECISIONS
from blocklora.errors import UserError
from blocklora.files import read_json
from blocklora.runs.aggregate import files_of_row
from blocklora.runs.lock import Holder, is_alive, read_holder
from blocklora.runs.predictions import read_test_facts
from blocklora.study.digests import fit_digest, test_digest
from blocklora.study.model import Run, Study
from blocklora.tensorfiles import read_tensors

STATES = ("done", "running", "failed", "missing")
# The logs of the steps before a run, below the folder of logs, in the order of the steps.
STEP_LOGS = (
    "fetch_dataset/{dataset}.log",
    "make_manifest/{dataset}.log",
    "verify_data/{dataset}.log",
    "shots/{dataset}/{shots}shot-seed{seed}.log",
    "decode_test/{dataset}-{size}px.log",
    "decode_shots/{dataset}/{shots}shot-seed{seed}.log",
    "fetch_backbone/{backbone}.log",
    "pretrain_backbone/{backbone}.log",
    "test/{backbone}/{dataset}/{zero_shot}.log",
    "gate/{backbone}/{dataset}.log",
)
ERROR = re.compile(r"^blocklora ([a-z-]+): error: ")


@dataclass(frozen=True)
class RunStatus:
    """What is known of a run.

    Attributes:
        run: the run.
        state: one of `STATES`.
        why: the reason for the state, in words; empty for "done".
        spent_seconds: on training and testing so far.
        expected_seconds: in all, the median of finished runs like it; None if there is none.
    """

    run: Run
    state: str
    why: str
    spent_seconds: float
    expected_seconds: float | None

    @property
    def left_seconds(self) -> float | None:
        """What is expected to be still to do."""
        if self.state == "done":
            return 0.0
        if self.expected_seconds is None:
            return None
        return max(0.0, self.expected_seconds - self.spent_seconds)

    def to_json(self) -> dict[str, Any]:
        """Return the status as JSON values."""
        facts = {key: value for key, value in vars(self).items() if key != "run"}
        return {**asdict(self.run), **facts, "left_seconds": self.left_seconds}


def study_status(study: Study, results: Path) -> list[RunStatus]:
    """Return the status of every run of a study, in its order; `results` is the study's folder."""
    found = {run: _finished(study, results, run) for run in study.runs()}
    times: dict[tuple, list[float]] = defaultdict(list)
    for run, value in found.items():
        if isinstance(value, float):
            for kind in _kinds(run):
                times[kind].append(value)
    holders, log_error = _holders(results / "checkpoints"), cache(_log_error)
    status = []
    for run, value in found.items():
        expected = next((median(times[kind]) for kind in _kinds(run) if kind in times), None)
        if isinstance(value, float):
            status.append(RunStatus(run, "done", "", value, expected))
            continue
        step, spent = _checkpointed(study, results, run)
        state, why = _state_without_record(study, run, results / "logs", log_error, holders)
        if value and state != "running":
            state, why = "missing", value
        if step:
            steps = study.methods[run.method].recipe.iterations_per_shot * run.shots
            why += f"; at step {step} of {steps}"
        status.append(RunStatus(run, state, why, spent, expected))
    return status


def _kinds(run: Run) -> list[tuple]:
    """Return what a run and those that take as long have in common, the closest first."""
    like = (run.backbone, run.method, run.shots)
    return [(*like, run.dataset), like]


def status_text(status: list[RunStatus]) -> str:
    """Return the table of a study's status, and what is running and what has failed."""
    header = ("backbone", "dataset", "method", *STATES, "spent", "left")
    cells: dict[tuple[str, ...], list[RunStatus]] = defaultdict(list)
    for entry in status:
        cells[entry.run.backbone, entry.run.dataset, entry.run.method].append(entry)
    rows = [header, *((*cell, *_summary(entries)) for cell, entries in cells.items())]
    rows.append(("all", "", "", *_summary(status)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        texts = [text.rjust(width) for text, width in zip(row, widths, strict=True)]
        texts[:3] = [text.ljust(width) for text, width in zip(row[:3], widths[:3], strict=True)]
        lines.append("  ".join(texts))
    for state in ("running", "failed"):
        reasons: dict[str, list[str]] = defaultdict(list)
        for entry in status:
            if entry.state == state:
                reasons[entry.why].append(entry.run.folder)
        for why, folders in reasons.items():
            more = f" and {len(folders) - 1} more" if len(folders) > 1 else ""
            lines += ["", f"{state}: {folders[0]}{more}", f"  {why}"]
    return "\n".join(lines)


def _finished(study: Study, results: Path, run: Run) -> float | str | None:
    """Return the seconds a finished run took, why it does not count, or None without one."""
    folder = results / "runs"
    paths = [folder / file for file in files_of_row(run)]
    if not all(path.exists() for path in paths):
        return None
    seconds, current = 0.0, True
    try:
        if run.method in study.fitted_methods:
            path = paths[0]
            record = read_json(path)
            made_by = record["provenance"]
            digest = fit_digest(study, run, made_by["precision"], made_by["engine"])
            current = made_by["fit_digest"] == digest
            seconds += float(record["cost"]["training_seconds"])
        for test in run.own_tests:
            path = folder / test.file
            facts = read_test_facts(path)
            digest = test_digest(study, test, facts["precision"], facts["engine"])
            current = current and facts["test_digest"] == digest
            seconds += float(facts["seconds"])
    except UserError as error:
        return str(error)
    except (KeyError, TypeError, ValueError):
        return f"{path}: not the record of a run; delete it and run again"
    return seconds if current else "made by another version of the study or of the code"


def _holders(checkpoints: Path) -> dict[str, Holder]:
    """Return who holds the locks in use, by the folders of their runs."""
    holders = map(read_holder, sorted(checkpoints.glob("*.lock")))
    return {found.run: found for found in holders if found and is_alive(found) is not False}


def _checkpointed(study: Study, results: Path, run: Run) -> tuple[int, float]:
    """Return how many steps and seconds are in the checkpoint of a run."""
    # Everything a fit can depend on beside the study: the configuration is not known here.
    for precision, engine in product(PRECISIONS, ENGINES):
        digest = fit_digest(study, run, precision, engine)
        path = results / "checkpoints" / f"{digest}.safetensors"
        if path.exists():
            with suppress(UserError, KeyError, TypeError, ValueError):
                facts, _ = read_tensors(path, "checkpoint", "", facts_only=True)
                return int(facts["step"]), float(facts["seconds"])
            break
    return 0, 0.0


def _state_without_record(
    study: Study, run: Run, logs: Path, log_error: Callable[[Path], str], holders: dict[str, Holder]
) -> tuple[str, str]:
    """Return state and reason of a run that has no record."""
    if run.folder in holders:
        return "running", str(holders[run.folder])
    names = {"size": study.image_size(run.backbone), "zero_shot": study.zero_shot, **asdict(run)}
    steps = [logs / step.format(**names) for step in STEP_LOGS]
    own = _job_log(logs, run)
    for log in [*steps, *filter(None, [own])]:
        if error := log_error(log):
            return "failed", error
    if own is None:
        return "missing", "not begun"
    cell = run.folder.rpartition("/")[0]
    if any(folder.rpartition("/")[0] == cell for folder in holders):
        return "missing", "waits for another seed, perhaps in the same job"
    name = own.relative_to(logs)
    return "failed", f"{name} ends without a message: the job was killed, or has just begun"


def _job_log(logs: Path, run: Run) -> Path | None:
    """Return the log of the job that does `run`; None if there is none."""
    if run.shots == 0:
        found = [logs / f"test/{run.backbone}/{run.dataset}/{run.method}.log"]
    else:
        cell = logs / "fit" / run.backbone / run.dataset / run.method
        found = [
            path
            for path in sorted(cell.glob(f"{run.shots}shot-seeds*.log"))
            if str(run.seed) in path.stem.partition("-seeds")[2].split("_")
        ]
    return next((path for path in found if path.exists()), None)


def _log_error(path: Path) -> str:
    """Return the message a log ends with, if it is of an error; a job begins its log anew."""
    text = path.read_text("utf-8", errors="replace") if path.exists() else ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    starts = [i for i, line in enumerate(lines) if ERROR.match(line)]
    message = ""
    if starts:
        message = ERROR.sub(r"\1: ", " ".join(lines[starts[-1] :]))
    elif any(line.startswith("Traceback ") for line in lines):
        message = f"{path}: {lines[-1]}"
    return shorten(message, 500, placeholder=" …")


def _summary(entries: list[RunStatus]) -> tuple[str, ...]:
    counts = Counter(entry.state for entry in entries)
    known = [entry.left_seconds for entry in entries if entry.left_seconds is not None]
    left = _duration(sum(known)) if known else "?"
    return (
        *(str(counts[state]) for state in STATES),
        _duration(sum(entry.spent_seconds for entry in entries)),
        f"> {left}" if 0 < len(known) < len(entries) else left,
    )


def _duration(seconds: float) -> str:
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}"
