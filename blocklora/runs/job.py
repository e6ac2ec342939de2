"""The work of one process: all missing fits and tests of one backbone on one dataset.

Weights, class names and pixels are read once, and only if something has to be computed. A fit or
test that any study has finished with the same digest is taken from the cache.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache, cached_property, partial
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

from blocklora.cache import UNFINISHED, Cache, content_digest, place
from blocklora.errors import Interrupted, UserError
from blocklora.files import json_digest, write_text
from blocklora.locks import Lock, LockedError, hold, hold_when_free
from blocklora.methods.base import Compute
from blocklora.runs.failures import GpuFailedError, failures_explained
from blocklora.runs.gpu import claim_gpu
from blocklora.runs.interruption import Interruption
from blocklora.runs.record import failure_log, fit_files, key_of_fit, key_of_test
from blocklora.runs.staging import staged
from blocklora.study import places
from blocklora.study.digests import fit_digest, test_digest
from blocklora.study.run import Run, Test
from blocklora.study.study import Study

if TYPE_CHECKING:
    from blocklora.methods.base import Shots, Task
    from blocklora.runs.task import TestImages

FITS, TESTS = "fits", "tests"
"""Kinds of entries in the cache."""

Locking = Callable[[Path, str], AbstractContextManager[Lock]]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """The fits and tests of a process, with everything that they share.

    Attributes:
        study: The study.
        backbone: The name of the backbone.
        dataset: The name of the dataset whose images are classified.
        results: The folder of the study's results.
        cache: The cache from which finished fits and tests are taken, and which keeps new ones.
        compute: Device, precision, engine and threads.
        scratch: A folder for copies of weights and pixels; empty to make no copies.
        gpu_jobs: How many jobs may compute on the GPUs of this machine at a time.
        checkpoint_seconds: The least time in seconds between two checkpoints of a run.
        restart: True to discard the checkpoints of the runs first.
        interruption: Tells whether a signal has asked the process to stop.
    """

    study: Study
    backbone: str
    dataset: str
    results: Path
    cache: Cache
    compute: Compute
    scratch: str = ""
    gpu_jobs: int = 1
    checkpoint_seconds: float = 60.0
    restart: bool = False
    interruption: Interruption = field(default_factory=Interruption)

    def fit(self, runs: Iterable[Run]) -> None:
        """Fit and test all of these runs that are missing.

        If another process is working on a run, that run comes last. If a run fails, the others are
        fitted all the same, unless the GPU has failed.

        Raises:
            UserError: Runs failed; the message says which and why.
            Interrupted: A signal asked the process to stop, and the work is in a checkpoint; or
                another process took over the lock of a run.
        """
        kept, failures = [], []
        queue: deque[tuple[Run, Locking]] = deque((run, hold) for run in runs)
        while queue:
            run, locking = queue.popleft()
            self._stop_if_asked(run)
            try:
                with self._noting_failure(run), failures_explained(f"run {run.folder}: "):
                    kept += self._fit(run, locking)
            except LockedError:
                logger.info("run %s: another process works on it, so others come first", run.folder)
                wait = partial(hold_when_free, stop=partial(self._stop_if_asked, run))
                queue.append((run, wait))
            except Interrupted:
                raise
            except UserError as error:
                # Only the text, because the traceback holds on to the tensors of the failed run.
                failures.append(str(error))
                if isinstance(error, GpuFailedError):
                    break
        if failures:
            # A fault that concerns all runs, such as damaged weights, is reported once.
            raise UserError("\n".join(dict.fromkeys(failures)))
        # Checkpoints stay until now, because Snakemake removes what a job has made if it fails.
        for checkpoint in kept:
            checkpoint.unlink(missing_ok=True)

    def test(self, tests: Iterable[Test]) -> None:
        """Do all of these tests that are missing.

        Raises:
            UserError: A fit is missing, or a file is missing or damaged.
        """
        for test in tests:
            run, key = test.run, None
            if fit_files(self.study, run):
                key = self._fitted_key(run)
                if key is None:
                    raise UserError(
                        f"run {run.folder}: there is no fit by this study and this version of the "
                        f"code in {self.runs}; make it with `blocklora fit`"
                    )
            test_key = self._test_key(test, key)
            lock = self._unfinished / f"{test_key}.lock"
            what = f"test of {test.file}"
            with hold_when_free(lock, what), failures_explained(f"{what}: "):
                self._test(run, {test: test_key})

    @contextmanager
    def _noting_failure(self, run: Run) -> Iterator[None]:
        """Remove the run's log of failures, and write the reason to a new one if the block fails.

        `blocklora status` reads these logs. An interrupted or locked run has not failed.
        """
        log = self.results / failure_log(run)
        with suppress(OSError):
            log.unlink(missing_ok=True)
        try:
            yield
        except (Interrupted, LockedError):
            raise
        except Exception as error:
            kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
            with suppress(OSError, UserError):  # the disk may be full
                write_text(log, f"blocklora fit: error: {kind}{error}\n")
            raise

    def _stop_if_asked(self, run: Run) -> None:
        if name := self.interruption.signal_name:
            raise Interrupted(
                f"run {run.folder}: stopped by {name} before its first step; "
                "start the same command again to go on from there"
            )

    def _fit(self, run: Run, locking: Locking) -> list[Path]:
        """Fit and test a run; return a list with its checkpoint if the cache cannot keep the fit.

        Raises:
            LockedError: Another process is working on the run, and `locking` does not wait for it.
        """
        drawn = run.dataset, run.shots, run.seed
        inputs = {
            "backbone_sha256": self._sha256_of(places.backbone(self.backbone)),
            "shots_sha256": self._sha256_of(places.shots_list(*drawn)),
            "pixels_sha256": self._sha256_of(places.shots_pixels(*drawn)),
        }
        key = json_digest([self._digest(run), vars(run), inputs])
        tests = {test: self._test_key(test, key) for test in run.own_tests}
        if self._fitted_key(run) == key and not self._missing(tests):
            logger.info("run %s: already finished", run.folder)
            return []
        checkpoint = self._unfinished / f"{key}.safetensors"
        with locking(checkpoint.with_suffix(".lock"), f"run {run.folder}") as lock:
            if self.restart:
                checkpoint.unlink(missing_ok=True)
            is_kept = self._fitted_key(run) == key
            if not is_kept and self._restore(FITS, key, self._fit_files(run)):
                logger.info("run %s: took its fit from the cache", run.folder)
                is_kept = True
            if not is_kept:
                is_kept = self._learn(run, inputs, checkpoint, lock)
            self._test(run, tests)
            if is_kept:
                checkpoint.unlink(missing_ok=True)
        return [] if is_kept else [checkpoint]

    def _learn(self, run: Run, inputs: Mapping[str, str], checkpoint: Path, lock: Lock) -> bool:
        """Fit a run, and return True if the cache keeps the fit."""
        from blocklora.runs.fit import fit_run
        from blocklora.runs.keeper import CheckpointKeeper

        keeper = CheckpointKeeper(
            run.folder,
            checkpoint,
            key=checkpoint.stem,
            interval_seconds=self.checkpoint_seconds,
            require_lock=lock.require,
            stop_signal=lambda: self.interruption.signal_name,
        )
        fit_run(self, run, inputs, keeper)
        return self._keep(FITS, keeper.key, f"fit of {run.folder}", self._fit_files(run))

    def _test(self, run: Run, keys: Mapping[Test, str]) -> None:
        """Do the tests of a run that are missing, and keep their predictions in the cache."""
        missing = self._missing(keys, restore=True)
        if not missing:
            return
        from blocklora.runs.fit import run_tests

        run_tests(self, run, missing)
        for test, key in missing.items():
            self._keep(TESTS, key, f"predictions of {test.file}", [self.runs / test.file])

    @property
    def runs(self) -> Path:
        """The folder of all runs."""
        return self.results / places.RUNS

    @cached_property
    def _unfinished(self) -> Path:
        """The folder of checkpoints and locks, which studies share if the cache is writable."""
        shared = self.cache.can_keep(UNFINISHED)
        return (self.cache.root if shared else self.results) / UNFINISHED

    @cached_property
    def loaded(self) -> tuple["Task", "TestImages"]:
        """The classification task on the dataset, and the dataset's test images.

        The device is set up first.
        """
        sharing = claim_gpu(self.compute.device, self.gpu_jobs)  # before torch is imported
        from blocklora.runs.device import require_device
        from blocklora.runs.task import load_task

        require_device(self.compute.device, self.compute.precision, sharing)
        clock = monotonic()
        loaded = load_task(
            staged(self.results / places.backbone(self.backbone), self.scratch),
            self.results / places.manifest(self.dataset),
            staged(self.results / self._test_pixels, self.scratch),
            max(1, self.compute.workers),
        )
        logger.info("read weights and class names in %.1f s", monotonic() - clock)
        return loaded

    def shots(self, run: Run) -> "Shots":
        """Return the training images of a run."""
        from blocklora.runs.task import open_shots

        drawn = run.dataset, run.shots, run.seed
        stored = staged(self.results / places.shots_pixels(*drawn), self.scratch)
        listed = self.results / places.shots_list(*drawn)
        return open_shots(listed, stored, self.loaded[0], run.shots, run.seed)

    def _digest(self, run: Run) -> str:
        return fit_digest(self.study, run, self.compute.precision, self.compute.engine)

    def _fitted_key(self, run: Run) -> str | None:
        return key_of_fit(self.study, run, self.runs, self._digest(run))

    def _fit_files(self, run: Run) -> list[Path]:
        return [self.runs / run.folder / name for name in fit_files(self.study, run)]

    def _keep(self, kind: str, key: str, about: str, files: Iterable[Path]) -> bool:
        """Copy files to the cache, and return True if it keeps them."""
        return self.cache.add(kind, key, about, {path.name: path for path in files})

    def _restore(self, kind: str, key: str, files: Iterable[Path]) -> bool:
        """Copy files from the cache; return False if it does not have them."""
        entry = self.cache.find(kind, key)
        for path in files if entry else ():
            place(entry.folder / path.name, path, link=False)
        return entry is not None

    def _missing(self, keys: Mapping[Test, str], restore: bool = False) -> dict[Test, str]:
        """Return the tests whose predictions are missing or outdated, with their keys.

        `restore` first copies predictions from the cache if it has them.
        """
        missing = {}
        for test, key in keys.items():
            path = self.runs / test.file
            if key_of_test(path) != key and not (restore and self._restore(TESTS, key, [path])):
                missing[test] = key
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

    @cached_property
    def _sha256_of(self) -> Callable[[str], str]:
        """A function that returns the SHA-256 of a file below the results, which is read once."""
        return cache(lambda file: content_digest(self.results / file))
