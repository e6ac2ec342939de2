"""How far a study is, read from its files alone: records, locks, checkpoints and logs."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
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
# Everything a result can depend on beside the study: the configuration is not known here.
COMPUTED_BY = list(product(PRECISIONS, ENGINES))

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
    seconds = {run: value for run, value in found.items() if isinstance(value, float)}
    expected = _Expectation(seconds)
    holders, logs = dict(_holders(results / "checkpoints")), _Logs(results / "logs")
    status = []
    for run, value in found.items():
        if isinstance(value, float):
            status.append(RunStatus(run, "done", "", value, expected(run)))
            continue
        step, spent = _checkpointed(study, results, run)
        state, why = _state_without_record(study, logs, run, holders)
        if value and state != "running":
            state, why = "missing", value
        if step:
            why += f"; at step {step} of {_steps(study, run)}"
        status.append(RunStatus(run, state, why, spent, expected(run)))
    return status


def status_text(status: list[RunStatus]) -> str:
    """Return the table of a study's status, and what is running and what has failed."""
    header = ("backbone", "dataset", "method", *STATES, "spent", "left")
    cells: dict[tuple[str, ...], list[RunStatus]] = defaultdict(list)
    for entry in status:
        cells[entry.run.backbone, entry.run.dataset, entry.run.method].append(entry)
    rows = [header, *((*cell, *_summary(entries)) for cell, entries in cells.items())]
    rows.append(("all", "", "", *_summary(status)))
    widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
    lines = []
    for row in rows:
        names, numbers = row[:3], row[3:]
        texts = [text.ljust(width) for text, width in zip(names, widths[:3], strict=True)]
        texts += [text.rjust(width) for text, width in zip(numbers, widths[3:], strict=True)]
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


class _Expectation:
    """Median time of finished runs: of the same cell, or else of the same method and shots."""

    def __init__(self, seconds: Mapping[Run, float]):
        times: dict[tuple, list[float]] = defaultdict(list)
        for run, value in seconds.items():
            for key in self._keys(run):
                times[key].append(value)
        self._medians = {key: median(values) for key, values in times.items()}

    def __call__(self, run: Run) -> float | None:
        return next((self._medians[k] for k in self._keys(run) if k in self._medians), None)

    @staticmethod
    def _keys(run: Run) -> list[tuple]:
        like = (run.backbone, run.method, run.shots)
        return [(*like, run.dataset), like]


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


def _holders(checkpoints: Path) -> Iterator[tuple[str, Holder]]:
    """Yield the locks in use by the folders of their runs."""
    for path in sorted(checkpoints.glob("*.lock")):
        holder = read_holder(path)
        if holder and is_alive(holder) is not False:
            yield holder.run, holder


def _checkpointed(study: Study, results: Path, run: Run) -> tuple[int, float]:
    """Return how many steps and seconds are in the checkpoint of a run."""
    if run.method not in study.fitted_methods:
        return 0, 0.0
    for precision, engine in COMPUTED_BY:
        digest = fit_digest(study, run, precision, engine)
        path = results / "checkpoints" / f"{digest}.safetensors"
        if path.exists():
            return _progress(path)
    return 0, 0.0


def _steps(study: Study, run: Run) -> int:
    return study.methods[run.method].recipe.iterations_per_shot * run.shots


def _progress(path: Path) -> tuple[int, float]:
    try:
        facts, _ = read_tensors(path, "checkpoint", "", facts_only=True)
        return int(facts["step"]), float(facts["seconds"])
    except (UserError, KeyError, TypeError, ValueError):
        return 0, 0.0


def _state_without_record(
    study: Study, logs: "_Logs", run: Run, holders: Mapping[str, Holder]
) -> tuple[str, str]:
    """Return state and reason of a run that has no record."""
    if run.folder in holders:
        return "running", str(holders[run.folder])
    names = {"size": study.image_size(run.backbone), "zero_shot": study.zero_shot, **asdict(run)}
    steps = [step.format(**names) for step in STEP_LOGS]
    own = logs.of_job(run)
    for log in [*steps, *filter(None, [own])]:
        if error := logs.error(log):
            return "failed", error
    if own is None:
        return "missing", "not begun"
    cell = run.folder.rpartition("/")[0]
    if any(folder.rpartition("/")[0] == cell for folder in holders):
        return "missing", "waits for another seed, perhaps in the same job"
    return "failed", f"{own} ends without a message: the job was killed, or has just begun"


class _Logs:
    """The log files of a study's workflow."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._errors: dict[str, str | None] = {}

    def of_job(self, run: Run) -> str | None:
        """Return the log of the job that does `run`, below the folder; None if there is none."""
        if run.shots == 0:
            names = [f"test/{run.backbone}/{run.dataset}/{run.method}.log"]
        else:
            cell = Path("fit", run.backbone, run.dataset, run.method)
            pattern = f"{run.shots}shot-seeds*.log"
            found = sorted((self._folder / cell).glob(pattern))
            seeds = {path: path.stem.partition("-seeds")[2].split("_") for path in found}
            names = [str(cell / path.name) for path in found if str(run.seed) in seeds[path]]
        return next((name for name in names if (self._folder / name).exists()), None)

    def error(self, name: str) -> str | None:
        """Return the message a log ends with, if it is of an error; a job begins its log anew."""
        if name not in self._errors:
            path = self._folder / name
            text = path.read_text("utf-8", errors="replace") if path.exists() else ""
            lines = [line.strip() for line in text.splitlines() if line.strip()]
            starts = [i for i, line in enumerate(lines) if ERROR.match(line)]
            if starts:
                message = ERROR.sub(r"\1: ", " ".join(lines[starts[-1] :]))
            elif any(line.startswith("Traceback ") for line in lines):
                message = f"{path}: {lines[-1]}"
            else:
                message = ""
            self._errors[name] = shorten(message, 500, placeholder=" …") or None
        return self._errors[name]


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
