"""How far a study is, read from its files alone: records, locks, checkpoints and logs."""

import functools
import re
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from textwrap import shorten
from typing import Any

from blocklora.cache import UNFINISHED
from blocklora.errors import UserError
from blocklora.files import read_json
from blocklora.locks import Holder, is_alive, read_holder
from blocklora.runs.aggregate import files_of_row
from blocklora.runs.predictions import read_test_facts
from blocklora.runs.record import why_missing
from blocklora.study import places
from blocklora.study.model import Study
from blocklora.study.run import Run
from blocklora.tensorfiles import read_tensors

STATES = ("done", "running", "failed", "missing")
# The logs of the steps before a run, below the folder of logs, in the order of the steps.
STEP_LOGS = (
    "fetch_dataset/{dataset}.log",
    "make_manifest/{dataset}.log",
    "verify_data/{dataset}.log",
    "shots/{dataset}.log",
    "decode_test/{dataset}-{size}px.log",
    "decode_shots/{dataset}.log",
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


def study_status(study: Study, results: Path, cache: Path) -> list[RunStatus]:
    """Return the status of every run of a study, in its order.

    Args:
        study: the study.
        results: the folder of its results.
        cache: the cache, which has the locks and checkpoints of runs.
    """
    found = {run: _finished(study, results, run) for run in study.runs()}
    times: dict[tuple, list[float]] = defaultdict(list)
    for run, value in found.items():
        if isinstance(value, float):
            for kind in _kinds(run):
                times[kind].append(value)
    unfinished = _unfinished(cache / UNFINISHED)
    holders, log_error = _holders(cache / UNFINISHED), functools.cache(_log_error)
    status = []
    for run, value in found.items():
        expected = next((median(times[kind]) for kind in _kinds(run) if kind in times), None)
        if isinstance(value, float):
            status.append(RunStatus(run, "done", "", value, expected))
            continue
        step, spent = unfinished.get(run.folder, (0, 0.0))
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


def what_is_missing(study: Study, runs: Path, precision: str, engine: str) -> str:
    """Return in words how many runs of a study are finished, and why the others have to be made.

    Args:
        study: the study.
        runs: folder of all runs.
        precision: the precision of the configuration.
        engine: the engine of the configuration.
    """
    reasons: Counter[tuple[str, str]] = Counter()
    everything = list(study.runs())
    for run in everything:
        if why := why_missing(study, run, runs, precision, engine):
            reasons[run.method, why] += 1
    finished = len(everything) - reasons.total()
    lines = [f"Study {study.name}: {finished} of {len(everything)} runs are finished."]
    for (method, why), count in reasons.items():
        lines.append(f"  {count} of {method}: {why}")
    return "\n".join(lines)


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
    folder = results / places.RUNS
    paths = [folder / file for file in files_of_row(run)]
    if not all(path.exists() for path in paths):
        return None
    seconds = 0.0
    try:
        facts = [read_test_facts(folder / test.file) for test in run.own_tests]
        how = facts[0]["precision"], facts[0]["engine"]
        if run.method in study.fitted_methods:
            seconds += float(read_json(paths[0])["cost"]["training_seconds"])
        seconds += sum(float(found["seconds"]) for found in facts)
    except UserError as error:
        return str(error)
    except (KeyError, TypeError, ValueError):
        return f"{folder / run.folder}: not the record of a run; delete it and run again"
    return why_missing(study, run, folder, *how) or seconds


def _holders(checkpoints: Path) -> dict[str, Holder]:
    """Return who holds the locks in use, by the folders of their runs."""
    holders = map(read_holder, sorted(checkpoints.glob("*.lock")))
    return {
        found.what.removeprefix("run "): found
        for found in holders
        if found and found.what.startswith("run ") and is_alive(found) is not False
    }


def _unfinished(folder: Path) -> dict[str, tuple[int, float]]:
    """Return how many steps and seconds are in each checkpoint, by the folders of their runs."""
    found = {}
    for path in sorted(folder.glob("[!.]*.safetensors")):
        with suppress(UserError, KeyError, TypeError, ValueError):
            facts, _ = read_tensors(path, "checkpoint", "", facts_only=True)
            found[facts["run"]] = int(facts["step"]), float(facts["seconds"])
    return found


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
    if any(_job_log(logs, Run(*other)) == own for other in map(_run_of_folder, holders)):
        return "missing", "waits for another run, perhaps in the same job"
    name = own.relative_to(logs)
    return "failed", f"{name} ends without a message: the job was killed, or has just begun"


def _run_of_folder(folder: str) -> tuple[str, str, str, int, int]:
    backbone, dataset, method, shots, seed = folder.split("/")
    return backbone, dataset, method, int(shots.removesuffix("shot")), int(seed[len("seed") :])


def _job_log(logs: Path, run: Run) -> Path | None:
    """Return the newest log of a job that does `run`; None if there is none."""
    cell = logs / "fit" / run.backbone / run.dataset
    found = [
        cell.with_name(f"{run.dataset}.log"),
        cell / f"{run.shots}shot.log",
        cell / f"{run.shots}shot/{run.method}-seed{run.seed}.log",
    ]
    if run.shots == 0:
        found = [logs / f"test/{run.backbone}/{run.dataset}/{run.method}.log"]
    return max(
        (path for path in found if path.exists()), key=lambda p: p.stat().st_mtime, default=None
    )


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
