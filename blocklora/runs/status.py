"""The progress of a study, read from its files alone: records, locks, checkpoints and logs."""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from textwrap import shorten
from typing import Any

from tabulate import tabulate

from blocklora.cache import UNFINISHED
from blocklora.engine.engines import ENGINES
from blocklora.errors import UserError
from blocklora.files import read_json
from blocklora.locks import Holder, is_alive, read_holder
from blocklora.runs.aggregate import files_of_row
from blocklora.runs.predictions import fields_of, read_test_facts
from blocklora.runs.record import why_missing
from blocklora.study import places
from blocklora.study.run import Run
from blocklora.study.study import Study
from blocklora.tensorfiles import read_tensors

STATES = ("done", "running", "failed", "missing")
NOT_BEGUN = "not begun"
ERROR = re.compile(r"^blocklora ([a-z-]+): error: ", re.MULTILINE)


@dataclass(frozen=True)
class RunStatus:
    """The state of a run.

    Attributes:
        run: The run.
        state: One of `STATES`.
        why: The reason for the state in words; empty for "done".
        spent_seconds: The time of training and testing so far.
        expected_seconds: The total time that similar runs took (median); None if there are none.
        left_seconds: The time that the run will probably still need; None if that is unknown.
    """

    run: Run
    state: str
    why: str
    spent_seconds: float
    expected_seconds: float | None
    left_seconds: float | None

    def to_json(self) -> dict[str, Any]:
        """Return the status as a JSON-serialisable dictionary."""
        facts = asdict(self)
        return facts.pop("run") | facts


def study_status(study: Study, results: Path, cache: Path) -> list[RunStatus]:
    """Return the status of every run, in the study's order.

    Locks and checkpoints are in the folder of the cache, or in that of the results if the cache
    cannot be written to. All other files are in the folder of the results.
    """
    found = {run: _time_or_reason(study, results / places.RUNS, run) for run in study.runs()}
    times: dict[tuple, list[float]] = defaultdict(list)
    for run, value in found.items():
        if isinstance(value, float):
            for kind in _kinds(run):
                times[kind].append(value)
    folders = [results / UNFINISHED, cache / UNFINISHED]
    holders, checkpoints = _holders(folders), _checkpoints(folders)
    errors = _errors(results / "logs")
    status = []
    for run, value in found.items():
        expected = next((median(times[kind]) for kind in _kinds(run) if kind in times), None)
        if isinstance(value, float):
            status.append(RunStatus(run, "done", "", value, expected, 0.0))
            continue
        state, why = _state(study, run, value, holders.get(run.folder), errors)
        step, spent = checkpoints.get(run.folder, (0, 0.0))
        if step:
            steps = study.methods[run.method].recipe.iterations_per_shot * run.shots
            progress = f"at step {step} of {steps}"
            why = f"interrupted {progress}" if why == NOT_BEGUN else f"{why}; {progress}"
        left = None if expected is None else max(0.0, expected - spent)
        status.append(RunStatus(run, state, why, spent, expected, left))
    return status


def what_is_missing(study: Study, runs: Path, precision: str, engine: str) -> str:
    """Return in words how many runs of a study are finished, and why the others are not.

    The others are counted by method and reason.
    """
    reasons = Counter(
        (run.method, why_missing(study, run, runs, precision, engine)) for run in study.runs()
    )
    finished = sum(count for (_, why), count in reasons.items() if why is None)
    lines = [f"Study {study.name}: {finished} of {reasons.total()} runs are finished."]
    lines += [f"  {count} of {method}: {why}" for (method, why), count in reasons.items() if why]
    return "\n".join(lines)


def status_text(status: list[RunStatus]) -> str:
    """Return a table of the states of runs, followed by the reasons of running and failed ones."""
    cells: dict[tuple[str, ...], list[RunStatus]] = defaultdict(list)
    reasons: dict[tuple[str, str], list[str]] = defaultdict(list)
    for entry in status:
        cells[entry.run.backbone, entry.run.dataset, entry.run.method].append(entry)
        if entry.state in ("running", "failed"):
            reasons[entry.state, entry.why].append(entry.run.folder)
    rows = [(*cell, *_summary(entries)) for cell, entries in cells.items()]
    text = tabulate(
        [*rows, ("all", "", "", *_summary(status))],
        ("backbone", "dataset", "method", *STATES, "spent", "left"),
        tablefmt="plain",
        disable_numparse=True,
        colalign=("left",) * 3 + ("right",) * (len(STATES) + 2),
    )
    # In reverse order, running runs come before failed ones.
    for (state, why), folders in sorted(reasons.items(), key=lambda e: e[0][0], reverse=True):
        more = f" and {len(folders) - 1} more" if len(folders) > 1 else ""
        text += f"\n\n{state}: {folders[0]}{more}\n  {why}"
    return text


def _kinds(run: Run) -> list[tuple]:
    """Return keys that runs of similar duration share, first that of the most similar runs."""
    like = (run.backbone, run.method, run.shots)
    return [(*like, run.dataset), like]


def _time_or_reason(study: Study, runs: Path, run: Run) -> float | str | None:
    """Return the seconds that a run took, or the reason why it does not count as finished.

    Returns None if one of its files is missing.
    """
    paths = [runs / file for file in files_of_row(run)]
    if not all(path.exists() for path in paths):
        return None
    try:
        with fields_of(runs / run.folder, "the files of a run"):
            tests = [read_test_facts(runs / test.file) for test in run.own_tests]
            seconds = sum(facts["seconds"] for facts in tests)
            if run.shots:
                seconds += read_json(paths[0])["cost"]["training_seconds"]
            how = tests[0]["precision"], tests[0]["engine"]
    except UserError as error:
        return str(error)
    if how[1] not in ENGINES:
        return f"its engine {how[1]} is not known to this version"
    return why_missing(study, run, runs, *how) or float(seconds)


def _holders(folders: Sequence[Path]) -> dict[str, Holder]:
    """Return the holder of each lock, whose process may be dead, by the folder of the run."""
    holders = [read_holder(path) for folder in folders for path in sorted(folder.glob("*.lock"))]
    # Killed processes leave their locks behind, and those of living ones replace them.
    holders = sorted(filter(None, holders), key=lambda holder: is_alive(holder) is not False)
    # A lock is for "run <folder>" or for "test of <folder>/tests/...".
    return {found.what.split()[-1].partition("/tests/")[0]: found for found in holders}


def _checkpoints(folders: Sequence[Path]) -> dict[str, tuple[int, float]]:
    """Return the finished steps and their seconds in the newest checkpoint of each run folder."""
    found: dict[str, tuple[float, int, float]] = {}
    for path in (path for folder in folders for path in folder.glob("[!.]*.safetensors")):
        with suppress(OSError, UserError, KeyError, TypeError, ValueError):
            facts, _ = read_tensors(path, "checkpoint", "", facts_only=True)
            entry = path.stat().st_mtime, int(facts["step"]), float(facts["seconds"])
            found[facts["run"]] = max(entry, found.get(facts["run"], entry))
    return {run: (step, seconds) for run, (_, step, seconds) in found.items()}


def _errors(logs: Path) -> list[tuple[float, set[str], str]]:
    """Return the errors that logs end with, newest first, as (time, names, message).

    The time is in seconds since the epoch. The path of a log, such as `decode_test/dtd-224px.log`,
    consists of the step and the names that it is for, such as a backbone and a dataset. A job of
    fits is for many runs, so its own log is left out, and each run that fails has a log; see
    `failure_log`.
    """
    found = []
    for path in logs.glob("*/**/*.log"):
        step, *names = path.relative_to(logs).with_suffix("").parts
        with suppress(OSError):  # it was just removed by a new start, or belongs to another user
            if step != "fit" and (error := _error(path)):
                found.append((path.stat().st_mtime, set(names), error))
    return sorted(found, key=lambda entry: entry[0], reverse=True)


def _error(path: Path) -> str:
    """Return the error message at the end of a log, or "" if there is none."""
    text = path.read_text("utf-8", errors="replace").strip()
    _, *said = ERROR.split(text)  # the command and the message of each error
    if said:
        message = f"{said[-2]}: {said[-1]}"
    else:
        message = f"{path}: {text.splitlines()[-1]}" if "Traceback (most" in text else ""
    return shorten(message, 500, placeholder=" …")


def _state(
    study: Study,
    run: Run,
    reason: str | None,
    holder: Holder | None,
    errors: list[tuple[float, set[str], str]],
) -> tuple[str, str]:
    """Return the state of a run that is not done, and the reason for it.

    `reason` says why its files, if it has all of them, do not count.
    """
    if holder and is_alive(holder) is not False:
        return "running", str(holder)
    size = study.image_size(run.backbone)
    own = {*run.folder.split("/"), f"{run.dataset}-{size}px", study.zero_shot}
    for _, names, error in errors:
        if names <= own:
            return "failed", error
    if reason:
        return "missing", reason
    if holder:
        return "failed", f"{holder}, ended without a message: the job was probably killed"
    return "missing", NOT_BEGUN


def _summary(entries: list[RunStatus]) -> tuple[str, ...]:
    """Return the cells of a row: the numbers of runs in each state, the time spent and left."""
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
