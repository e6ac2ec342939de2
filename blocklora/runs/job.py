"""The work of one process: all that is missing of a study on one backbone and one dataset.

Weights, class names and pixels are read once, and only if something has to be computed. A fit or a
test that any study has finished with the same digest is taken from the cache.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

from blocklora.cache import UNFINISHED, Cache, content_digest, place
from blocklora.errors import Interrupted, UserError
from blocklora.files import json_digest
from blocklora.locks import Lock, LockedError, hold, hold_when_free
from blocklora.methods.base import Compute
from blocklora.runs.gpu import claim_gpu
from blocklora.runs.interruption import Interruption
from blocklora.runs.record import fit_files, key_of_fit, key_of_test
from blocklora.runs.staging import staged
from blocklora.study import places
from blocklora.study.digests import fit_digest, test_digest
from blocklora.study.model import Study
from blocklora.study.run import Run, Test

if TYPE_CHECKING:
    from blocklora.methods.base import Shots, Task
    from blocklora.runs.keeper import CheckpointKeeper
    from blocklora.runs.task import TestImages

FITS, TESTS = "fits", "tests"
"""Kinds of entries in the cache."""

Locking = Callable[[Path, str], AbstractContextManager[Lock]]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """What the fits and tests of a process share.

    Attributes:
        study: the study.
        backbone: name of the backbone.
        dataset: name of the dataset whose images are classified.
        results: folder of the study's results.
        cache: where finished fits and tests are looked up and kept.
        compute: device, precision, engine and threads.
        scratch: folder for copies of weights and pixels, empty for none.
        checkpoint_seconds: the least time between two checkpoints of a run.
        restart: True discards the checkpoints of runs first.
        interruption: tells whether the process was asked to stop.
    """

    study: Study
    backbone: str
    dataset: str
    results: Path
    cache: Cache
    compute: Compute
    scratch: str = ""
    checkpoint_seconds: float = 60.0
    restart: bool = False
    interruption: Interruption = field(default_factory=Interruption)
    _digests: dict[str, str] = field(default_factory=dict, init=False, repr=False)

    def fit(self, runs: Iterable[Run]) -> None:
        """Fit and test what is missing of runs on the dataset.

        A run that another process is at is left for the end, and one that fails does not keep the
        others from being fitted.

        Raises:
            UserError: runs failed; the message says which and why.
            Interrupted: a signal asked for a stop, and the work is in a checkpoint.
        """
        kept, failures = [], []
        queue: deque[tuple[Run, Locking]] = deque((run, hold) for run in runs)
        while queue:
            run, locking = queue.popleft()
            self._stop_if_asked(run)
            try:
                kept += self._fit(run, locking)
            except LockedError:
                logger.info("run %s: another process is at it; others come first", run.folder)
                wait = partial(hold_when_free, stop=partial(self._stop_if_asked, run))
                queue.append((run, wait))
            except Interrupted:
                raise
            except UserError as error:
                # A copy, since the traceback keeps the failed run's tensors from being freed.
                failures.append(type(error)(str(error)))
        if failures:
            # Temporary only if all are.
            error = min(failures, key=lambda failure: failure.exit_status)
            # What fails all runs, such as damaged weights, is said once.
            raise type(error)("\n".join(dict.fromkeys(map(str, failures))))
        # Only now, since a workflow that sees one run fail removes the files of all.
        for checkpoint in kept:
            checkpoint.unlink(missing_ok=True)

    def test(self, tests: Iterable[Test]) -> None:
        """Do what is missing of tests on the dataset.

        Raises:
            UserError: there is no fit to be tested, or a file is missing or damaged.
        """
        for test in tests:
            run, key = test.run, None
            if fit_files(self.study, run):
                key = key_of_fit(self.study, run, self._runs, self._digest(run))
                if key is None:
                    raise UserError(
                        f"run {run.folder}: there is no fit of it by this study and this code in "
                        f"{self._runs}; make it with `blocklora fit`"
                    )
            test_key = self._test_key(test, key)
            lock = self._unfinished / f"{test_key}.lock"
            with hold_when_free(lock, f"test of {test.file}"):
                self._test(run, {test: test_key})

    def _stop_if_asked(self, run: Run) -> None:
        if name := self.interruption.signal_name:
            raise Interrupted(
                f"run {run.folder}: stopped by {name} before its first step; "
                "start the same command again to go on from there"
            )

    def _fit(self, run: Run, locking: Locking) -> list[Path]:
        """Fit and test one run; return its checkpoint if nothing else has its work for sure."""
        inputs = {
            "backbone_sha256": self._sha256_of(places.backbone(self.backbone)),
            "shots_sha256": self._sha256_of(self._place(places.shots_list, run)),
            "pixels_sha256": self._sha256_of(self._place(places.shots_pixels, run)),
        }
        key = json_digest([self._digest(run), vars(run), inputs])
        tests = {test: self._test_key(test, key) for test in run.own_tests}
        if self._is_fitted(run, key) and not self._missing(tests):
            logger.info("run %s: finished before, left as it is", run.folder)
            return []
        checkpoint = self._unfinished / f"{key}.safetensors"
        with locking(checkpoint.with_suffix(".lock"), f"run {run.folder}") as lock:
            if self.restart:
                checkpoint.unlink(missing_ok=True)
            is_kept = self._is_fitted(run, key) or self._restore_fit(run, key)
            if not is_kept:
                keeper = self._keeper(run, key, checkpoint, lock)
                is_kept = self._learn(run, key, inputs, keeper)
            self._test(run, tests, with_shots=True)
            if is_kept:
                checkpoint.unlink(missing_ok=True)
        return [] if is_kept else [checkpoint]

    def _keeper(self, run: Run, key: str, checkpoint: Path, lock: Lock) -> "CheckpointKeeper":
        from blocklora.runs.keeper import CheckpointKeeper

        return CheckpointKeeper(
            run.folder,
            checkpoint,
            key,
            self.checkpoint_seconds,
            lock.require,
            lambda: self.interruption.signal_name,
        )

    def _learn(
        self, run: Run, key: str, inputs: Mapping[str, str], keeper: "CheckpointKeeper"
    ) -> bool:
        """Fit a run that is nowhere, and return whether the cache has it now."""
        from blocklora.runs.fit import fit_run

        shots, folder = self._shots(run), self._runs / run.folder
        fit_run(self.study, run, self.task, shots, self.compute, inputs, folder, keeper)
        files = {name: folder / name for name in fit_files(self.study, run)}
        return self.cache.add(FITS, key, f"fit of {run.folder}", files)

    def _test(self, run: Run, keys: Mapping[Test, str], with_shots: bool = False) -> None:
        """Do the tests of a run that are missing, and keep their predictions in the cache."""
        missing = self._missing(keys, restore=True)
        if not missing:
            return
        from blocklora.runs.testing import run_tests

        shots = self._shots(run) if with_shots else None
        run_tests(self.study, run, missing, self.task, self.images, shots, self.compute, self._runs)
        for test, key in missing.items():
            path = self._runs / test.file
            self.cache.add(TESTS, key, f"predictions of {test.file}", {path.name: path})

    @property
    def _runs(self) -> Path:
        return self.results / places.RUNS

    @cached_property
    def _unfinished(self) -> Path:
        """The folder of checkpoints and locks, which studies share where they can."""
        shared = self.cache.can_keep(UNFINISHED)
        return (self.cache.root if shared else self.results) / UNFINISHED

    @property
    def task(self) -> "Task":
        """The classification task on the dataset."""
        return self._loaded[0]

    @property
    def images(self) -> "TestImages":
        """The test images of the dataset."""
        return self._loaded[1]

    @cached_property
    def _loaded(self) -> tuple["Task", "TestImages"]:
        claim_gpu(self.compute.device)
        from blocklora.runs.task import load_task

        clock = monotonic()
        loaded = load_task(
            staged(self.results / places.backbone(self.backbone), self.scratch),
            self.results / places.manifest(self.dataset),
            staged(self.results / self._test_pixels, self.scratch),
            max(1, self.compute.workers),
        )
        logger.info("read weights and class names in %.1f s", monotonic() - clock)
        return loaded

    def _shots(self, run: Run) -> "Shots":
        from blocklora.runs.task import open_shots

        stored = staged(self.results / self._place(places.shots_pixels, run), self.scratch)
        shots_list = self.results / self._place(places.shots_list, run)
        return open_shots(shots_list, stored, self.task, run.shots, run.seed)

    def _digest(self, run: Run) -> str:
        return fit_digest(self.study, run, self.compute.precision, self.compute.engine)

    def _is_fitted(self, run: Run, key: str) -> bool:
        return key_of_fit(self.study, run, self._runs, self._digest(run)) == key

    def _restore_fit(self, run: Run, key: str) -> bool:
        """Return whether a fit was in the cache, whose files the folder of the run has now."""
        entry = self.cache.find(FITS, key)
        if entry is None:
            return False
        for name in fit_files(self.study, run):
            place(entry.folder / name, self._runs / run.folder / name, link=False)
        logger.info("run %s: its fit is taken from %s", run.folder, entry.folder)
        return True

    def _missing(self, keys: Mapping[Test, str], restore: bool = False) -> dict[Test, str]:
        """Return the tests without predictions, if need be after a look into the cache."""
        missing = {}
        for test, key in keys.items():
            path = self._runs / test.file
            if key_of_test(path) == key:
                continue
            entry = self.cache.find(TESTS, key) if restore else None
            if entry is None:
                missing[test] = key
            else:
                place(entry.folder / path.name, path, link=False)
        return missing

    def _test_key(self, test: Test, fit_key: str | None) -> str:
        """Return the digest of all that the predictions of a test depend on."""
        digest = test_digest(self.study, test, self.compute.precision, self.compute.engine)
        contents = [digest, vars(test.run), fit_key]
        if test.part == "test":
            used = (places.backbone(self.backbone), places.manifest(self.dataset))
            contents += map(self._sha256_of, (*used, self._test_pixels))
        return json_digest(contents)

    @property
    def _test_pixels(self) -> str:
        return places.test_pixels(self.dataset, self.study.image_size(self.backbone))

    def _place(self, where: Callable[..., str], run: Run) -> str:
        return where(run.dataset, run.shots, run.seed)

    def _sha256_of(self, where: str) -> str:
        """Return the SHA-256 of a file of the study, which does not change meanwhile."""
        if where not in self._digests:
            self._digests[where] = content_digest(self.results / where)
        return self._digests[where]
