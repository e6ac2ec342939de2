"""Subcommands that fit and test methods, and that use what was fitted."""

import logging
from argparse import ArgumentParser, Namespace, _SubParsersAction
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

from blocklora.commands.arguments import natural, positive
from blocklora.engine.engines import ENGINES
from blocklora.engine.precisions import PRECISIONS
from blocklora.errors import Interrupted, UserError
from blocklora.runs.gpu import claim_gpu
from blocklora.runs.interruption import Interruption, catch_interruption
from blocklora.runs.staging import staged
from blocklora.study.model import Run, Study, Test, load_study

if TYPE_CHECKING:
    from blocklora.methods.base import Compute, Task
    from blocklora.runs.task import TestImages

logger = logging.getLogger(__name__)


def add_commands(subparsers: _SubParsersAction) -> None:
    """Add these subcommands to the command line."""
    fit = subparsers.add_parser(
        "fit",
        help="fit and test a method with one or more seeds",
        description="Fit a method once per seed and test it on its dataset. A run that was "
        "interrupted goes on from its checkpoint, and what is finished is left as it is; a run "
        "that fails does not keep the other seeds from being fitted.",
    )
    _add_task_arguments(fit)
    fit.add_argument("--method", required=True, help="name of the method in the study")
    fit.add_argument("--shots", type=positive, required=True, help="training images per class")
    fit.add_argument("--seeds", type=natural, nargs="+", required=True)
    fit.add_argument("--shots-lists", type=Path, nargs="+", required=True, help="one CSV per seed")
    fit.add_argument(
        "--shots-pixels", type=Path, nargs="+", required=True, help="one store per seed"
    )
    fit.add_argument("--checkpoints", type=Path, required=True, help="folder for unfinished work")
    fit.add_argument(
        "--checkpoint-seconds",
        type=float,
        default=60.0,
        help="least time between two checkpoints of a run (default: 60)",
    )
    fit.add_argument(
        "--restart", action="store_true", help="discard the checkpoints of these runs first"
    )
    fit.set_defaults(run=_fit)

    test = subparsers.add_parser(
        "test",
        help="test a method that was fitted, or that needs no fitting",
        description="Classify a dataset's test images and write the predictions. Without --shots "
        "and --seeds the method is one that is not trained.",
    )
    _add_task_arguments(test)
    test.add_argument("--method", required=True, help="name of the method in the study")
    test.add_argument("--shots", type=positive, help="training images per class of the fits")
    test.add_argument("--seeds", type=natural, nargs="+", default=[], help="those of the fits")
    test.add_argument(
        "--fitted-on", metavar="DATASET", help="dataset of the fits, if it is another one"
    )
    test.set_defaults(run=_test)

    gate = subparsers.add_parser(
        "gate",
        help="compare a zero-shot accuracy with the known one",
        description="Compare the accuracy of zero-shot predictions with published and "
        "independently measured values, and stop where it is off by more than the tolerance.",
    )
    gate.add_argument("--predictions", type=Path, required=True, help="of the zero-shot test")
    gate.add_argument("--backbone", required=True)
    gate.add_argument("--dataset", required=True)
    gate.add_argument("--output", type=Path, required=True, help="report (JSON)")
    gate.add_argument("--mode", choices=("stop", "warn"), default="stop")
    gate.set_defaults(run=_gate)

    predict = subparsers.add_parser(
        "predict",
        help="classify images with a trained adapter",
        description="Print file, class and probability of each image, separated by tabs.",
    )
    _add_adapter_arguments(predict)
    predict.add_argument("images", type=Path, nargs="+", help="image files")
    predict.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    predict.set_defaults(run=_predict)

    merge = subparsers.add_parser(
        "merge",
        help="fold a trained adapter into plain weights",
        description="Write the backbone with the adapter folded in, under open_clip's names.",
    )
    _add_adapter_arguments(merge)
    merge.add_argument("--output", type=Path, required=True, help="safetensors file to write")
    merge.set_defaults(run=_merge)


def _add_task_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--study", type=Path, required=True, help="study file")
    parser.add_argument("--backbone", required=True, help="name of the backbone in the study")
    parser.add_argument("--dataset", required=True, help="name of the dataset in the study")
    parser.add_argument("--backbone-file", type=Path, required=True)
    parser.add_argument("--manifest", type=Path, required=True)
    parser.add_argument("--test-pixels", type=Path, required=True)
    parser.add_argument("--runs", type=Path, required=True, help="folder of all runs")
    parser.add_argument(
        "--scratch", default="", help="folder for copies of weights and pixels, such as $TMPDIR"
    )
    parser.add_argument(
        "--workers",
        type=natural,
        default=0,
        help="threads that prepare batches ahead and decode what no store holds (default: 0)",
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=tuple(PRECISIONS), default="fp32")
    parser.add_argument("--engine", choices=tuple(ENGINES), default="fast")


def _add_adapter_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--adapter", type=Path, required=True, help="adapter.safetensors of a run")
    parser.add_argument("--backbone-file", type=Path, required=True, help="what it was trained on")


def _fit(options: Namespace) -> None:
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
        compute, task, test_images = _prepare(options)
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
                checkpoint = _fit_one(
                    study, run, task, test_images, compute, *files, options, interruption
                )
                finished.append(checkpoint)
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


def _prepare(options: Namespace) -> tuple["Compute", "Task", "TestImages"]:
    claim_gpu(options.device)
    from blocklora.methods.base import Compute
    from blocklora.runs.task import load_task

    backbone = staged(options.backbone_file, options.scratch)
    pixels = staged(options.test_pixels, options.scratch)
    clock = monotonic()
    task, test_images = load_task(backbone, options.manifest, pixels, max(1, options.workers))
    logger.info("read weights and class names in %.1f s", monotonic() - clock)
    compute = Compute(options.device, options.precision, options.engine, options.workers)
    return compute, task, test_images


def _fit_one(
    study: Study,
    run: Run,
    task: "Task",
    test_images: "TestImages",
    compute: "Compute",
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
        run_tests(study, missing, task, test_images, shots, compute, options.runs)
    return checkpoint


def _test(options: Namespace) -> None:
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
    compute, task, test_images = _prepare(options)
    from blocklora.runs.testing import run_tests

    dataset = options.fitted_on or options.dataset
    for seed in options.seeds or [0]:
        run = Run(options.backbone, dataset, options.method, options.shots or 0, seed)
        tests = [Test(run, options.dataset)]
        run_tests(study, tests, task, test_images, None, compute, options.runs)


def _gate(options: Namespace) -> None:
    from blocklora.runs.gate import gate

    gate(options.predictions, options.backbone, options.dataset, options.mode, options.output)


def _predict(options: Namespace) -> None:
    from blocklora.runs.device import require_device
    from blocklora.runs.predict import classify

    require_device(options.device, "fp32")
    for path, name, probability in classify(
        options.adapter, options.backbone_file, options.images, options.device
    ):
        print(f"{path}\t{name}\t{probability:.4f}")


def _merge(options: Namespace) -> None:
    from blocklora.runs.predict import export_merged

    export_merged(options.adapter, options.backbone_file, options.output)
