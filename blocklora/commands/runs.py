"""Subcommands that fit and test methods, and that use what was fitted."""

import logging
from argparse import ArgumentParser, Namespace, _SubParsersAction
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple

from blocklora.commands.arguments import add_command, add_options, natural, positive
from blocklora.engine.engines import ENGINES
from blocklora.errors import Interrupted, UserError
from blocklora.runs.gpu import claim_gpu
from blocklora.runs.interruption import Interruption, catch_interruption
from blocklora.runs.staging import staged
from blocklora.study.model import Run, Study, Test, load_study

if TYPE_CHECKING:
    from blocklora.methods.base import Compute, Task
    from blocklora.runs.task import TestImages

logger = logging.getLogger(__name__)


class Prepared(NamedTuple):
    """What the runs of a job share: their task, its test images, and how to compute."""

    task: "Task"
    images: "TestImages"
    compute: "Compute"


def add_commands(subparsers: _SubParsersAction) -> None:
    """Add these subcommands to the command line."""
    fit = add_command(subparsers, _fit)
    _add_task_arguments(fit)
    fit.add_argument("--shots", type=positive, required=True, help="training images per class")
    fit.add_argument("--seeds", type=natural, nargs="+", required=True)
    fit.add_argument("--shots-lists", type=Path, nargs="+", required=True, help="one CSV per seed")
    fit.add_argument(
        "--shots-pixels", type=Path, nargs="+", required=True, help="one store per seed"
    )
    add_options(fit, checkpoints="folder for unfinished work")
    fit.add_argument(
        "--checkpoint-seconds",
        type=float,
        default=60.0,
        help="least time between two checkpoints of a run (default: 60)",
    )
    fit.add_argument(
        "--restart", action="store_true", help="discard the checkpoints of these runs first"
    )

    test = add_command(subparsers, _test)
    _add_task_arguments(test)
    test.add_argument("--shots", type=positive, help="training images per class of the fits")
    test.add_argument("--seeds", type=natural, nargs="+", default=[], help="those of the fits")
    test.add_argument(
        "--fitted-on", metavar="DATASET", help="dataset of the fits, if it is another one"
    )

    gate = add_command(subparsers, _gate)
    add_options(gate, predictions="of the zero-shot test")
    add_options(gate, "backbone", "dataset", output="report (JSON)")
    gate.add_argument("--mode", choices=("stop", "warn"), default="stop")

    adapter = {"adapter": "adapter.safetensors of a run", "backbone_file": "what it was trained on"}
    predict = add_command(subparsers, _predict)
    add_options(predict, **adapter)
    predict.add_argument("images", type=Path, nargs="+", help="image files")
    add_options(predict, "device")

    add_options(add_command(subparsers, _merge), **adapter, output="safetensors file to write")


def _add_task_arguments(parser: ArgumentParser) -> None:
    add_options(
        parser,
        "study",
        "backbone",
        "dataset",
        backbone_file="safetensors file of the backbone",
        manifest="manifest.csv of the dataset",
        test_pixels="store of the decoded test images",
        runs="folder of all runs",
    )
    parser.add_argument(
        "--scratch", default="", help="folder for copies of weights and pixels, such as $TMPDIR"
    )
    parser.add_argument(
        "--workers",
        type=natural,
        default=0,
        help="threads that prepare batches ahead and decode what no store holds (default: 0)",
    )
    add_options(parser, "device", "precision")
    parser.add_argument("--engine", choices=tuple(ENGINES), default="fast")
    parser.add_argument("--method", required=True, help="name of the method in the study")


def _fit(options: Namespace) -> None:
    """Fit and test a method with one or more seeds.

    A run that was interrupted goes on from its checkpoint, and what is finished is left as it is; a
    run that fails does not keep the other seeds from being fitted.
    """
    study = load_study(options.study)
    if options.method not in study.fitted_methods:
        raise UserError(
            f"{options.study}: {options.method!r} is not a method that is fitted; "
            f"there are {', '.join(study.fitted_methods)}"
        )
    if not len(options.seeds) == len(options.shots_lists) == len(options.shots_pixels):
        raise UserError("--shots-lists and --shots-pixels need one file for each of --seeds")

    finished, failures = [], []
    with catch_interruption() as interruption:
        prepared = _prepare(options)
        for seed, *files in zip(
            options.seeds, options.shots_lists, options.shots_pixels, strict=True
        ):
            run = Run(options.backbone, options.dataset, options.method, options.shots, seed)
            if name := interruption.signal_name:
                raise Interrupted(
                    f"run {run.folder}: stopped by {name} before its first step; "
                    "start the same command again to go on from there"
                )
            try:
                finished.append(_fit_one(study, run, prepared, *files, options, interruption))
            except Interrupted:
                raise
            except UserError as error:
                # A copy, since the traceback keeps the failed run's tensors from being freed.
                failures.append(type(error)(str(error)))
    if failures:
        # Temporary only if all are.
        error = min(failures, key=lambda failure: failure.exit_status)
        raise type(error)("\n".join(map(str, failures)))
    # Only now, since a workflow that sees one seed fail removes the files of all.
    for checkpoint in finished:
        checkpoint.unlink(missing_ok=True)


def _prepare(options: Namespace) -> Prepared:
    claim_gpu(options.device)
    from blocklora.methods.base import Compute
    from blocklora.runs.task import load_task

    backbone = staged(options.backbone_file, options.scratch)
    pixels = staged(options.test_pixels, options.scratch)
    clock = monotonic()
    task, images = load_task(backbone, options.manifest, pixels, max(1, options.workers))
    logger.info("read weights and class names in %.1f s", monotonic() - clock)
    compute = Compute(options.device, options.precision, options.engine, options.workers)
    return Prepared(task, images, compute)


def _fit_one(
    study: Study,
    run: Run,
    prepared: Prepared,
    shots_list: Path,
    shots_pixels: Path,
    options: Namespace,
    interruption: Interruption,
) -> Path:
    """Fit and test one run under its lock and return the file of its checkpoint."""
    from blocklora.runs.fit import fit_run, is_fitted
    from blocklora.runs.keeper import CheckpointKeeper
    from blocklora.runs.lock import hold
    from blocklora.runs.task import open_shots
    from blocklora.runs.testing import missing_tests, run_tests
    from blocklora.study.digests import fit_digest

    task, images, compute = prepared
    digest = fit_digest(study, run, compute.precision, compute.engine)
    checkpoint = options.checkpoints / f"{digest}.safetensors"
    folder = options.runs / run.folder
    with hold(checkpoint.with_suffix(".lock"), run.folder) as lock:
        if options.restart:
            checkpoint.unlink(missing_ok=True)
        fitted = is_fitted(study, run, folder, digest)
        missing = missing_tests(study, run.own_tests, options.runs, compute)
        if fitted and not missing:
            logger.info("run %s: finished before, left as it is", run.folder)
            return checkpoint
        stored = staged(shots_pixels, options.scratch)
        shots = open_shots(shots_list, stored, task, run.shots, run.seed)
        if not fitted:
            keeper = CheckpointKeeper(
                run.folder,
                checkpoint,
                digest,
                options.checkpoint_seconds,
                lock.require,
                lambda: interruption.signal_name,
            )
            fit_run(study, run, task, shots, compute, shots_list, folder, keeper)
            missing = list(run.own_tests)
        run_tests(study, missing, task, images, shots, compute, options.runs)
    return checkpoint


def _test(options: Namespace) -> None:
    """Test a method that was fitted, or that needs no fitting.

    A dataset's test images are classified and the predictions written. Without --shots and --seeds
    the method is one that is not trained.
    """
    study = load_study(options.study)
    if options.method not in study.methods:
        raise UserError(
            f"{options.study}: there is no method {options.method!r}; "
            f"there are {', '.join(study.methods)}"
        )
    fitted = options.method in study.fitted_methods
    if fitted != bool(options.seeds) or fitted != (options.shots is not None):
        raise UserError(
            f"method {options.method} is {'fitted' if fitted else 'not fitted'}: it "
            f"{'needs' if fitted else 'has no'} --shots and --seeds"
        )
    task, images, compute = _prepare(options)
    from blocklora.runs.testing import run_tests

    dataset = options.fitted_on or options.dataset
    for seed in options.seeds or [0]:
        run = Run(options.backbone, dataset, options.method, options.shots or 0, seed)
        tests = [Test(run, options.dataset)]
        run_tests(study, tests, task, images, None, compute, options.runs)


def _gate(options: Namespace) -> None:
    """Compare a zero-shot accuracy with the known one.

    Known are published and independently measured values. The command fails, or warns, where the
    accuracy is off by more than the tolerance.
    """
    from blocklora.runs.gate import gate

    gate(options.predictions, options.backbone, options.dataset, options.mode, options.output)


def _predict(options: Namespace) -> None:
    """Classify images with a trained adapter.

    File, class and probability of each image are printed, separated by tabs.
    """
    from blocklora.runs.device import require_device
    from blocklora.runs.predict import classify

    require_device(options.device, "fp32")
    for path, name, probability in classify(
        options.adapter, options.backbone_file, options.images, options.device
    ):
        print(f"{path}\t{name}\t{probability:.4f}")


def _merge(options: Namespace) -> None:
    """Fold a trained adapter into plain weights, under open_clip's names."""
    from blocklora.runs.predict import export_merged

    export_merged(options.adapter, options.backbone_file, options.output)
