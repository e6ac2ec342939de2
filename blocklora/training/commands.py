"""Subcommands of `blocklora.training`."""

import logging
from argparse import ArgumentParser, Namespace, _SubParsersAction
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

from blocklora.arguments import natural, positive
from blocklora.errors import Interrupted, UserError
from blocklora.study.model import Run, Study, load_study
from blocklora.training import gate
from blocklora.training.gpu import claim_gpu
from blocklora.training.interruption import Interruption, catch_interruption
from blocklora.training.staging import staged

if TYPE_CHECKING:
    from blocklora.training.record import Compute
    from blocklora.training.task import Task

logger = logging.getLogger(__name__)


def add_commands(subparsers: _SubParsersAction) -> None:
    """Add this package's subcommands to the command line."""
    zero_shot = subparsers.add_parser(
        "zero-shot",
        help="test CLIP without training",
        description="Classify a dataset's test images by the class prompts alone.",
    )
    _add_task_arguments(zero_shot)
    zero_shot.set_defaults(run=_zero_shot)

    train = subparsers.add_parser(
        "train",
        help="train and test the adapters of one or more seeds",
        description="Train one adapter per seed and test it. A run that was interrupted goes on "
        "from its checkpoint; one that fails does not keep the other seeds from being trained.",
    )
    _add_task_arguments(train)
    train.add_argument("--method", required=True, help="name of the method in the study")
    train.add_argument("--shots", type=positive, required=True, help="training images per class")
    train.add_argument("--seeds", type=natural, nargs="+", required=True)
    train.add_argument(
        "--shots-lists", type=Path, nargs="+", required=True, help="one CSV per seed"
    )
    train.add_argument(
        "--shots-pixels", type=Path, nargs="+", required=True, help="one store per seed"
    )
    train.add_argument("--engine", choices=("fast", "reference"), default="fast")
    train.add_argument("--checkpoints", type=Path, required=True, help="folder for unfinished work")
    train.add_argument(
        "--checkpoint-seconds",
        type=float,
        default=60.0,
        help="least time between two checkpoints of a run (default: 60)",
    )
    train.add_argument(
        "--restart", action="store_true", help="discard the checkpoints of these runs first"
    )
    train.set_defaults(run=_train)
    gate.add_gate_command(subparsers)

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
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32")


def _add_adapter_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--adapter", type=Path, required=True, help="adapter.safetensors of a run")
    parser.add_argument("--backbone-file", type=Path, required=True, help="what it was trained on")


def _zero_shot(options: Namespace) -> None:
    from blocklora.training.record import Compute
    from blocklora.training.run import run_zero_shot

    study = load_study(options.study)
    run = Run(options.backbone, options.dataset, study.zero_shot, 0, 0)
    claim_gpu(options.device)
    task = _load_task(study, options)
    compute = Compute(options.device, options.precision, "fast", 0)
    run_zero_shot(study, run, task, compute, options.runs / run.folder)


def _train(options: Namespace) -> None:
    study = load_study(options.study)
    if options.method not in study.adapter_methods:
        raise UserError(
            f"{options.study}: {options.method!r} is not a method with an adapter; "
            f"there are {', '.join(study.adapter_methods)}"
        )
    if not len(options.seeds) == len(options.shots_lists) == len(options.shots_pixels):
        raise UserError("--shots-lists and --shots-pixels need one file for each of --seeds")

    finished, failures = [], []
    with catch_interruption() as interruption:
        from blocklora.training.record import Compute

        claim_gpu(options.device)
        task = _load_task(study, options)
        compute = Compute(options.device, options.precision, options.engine, options.workers)
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
                finished.append(
                    _train_one(study, run, task, compute, *files, options, interruption)
                )
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


def _load_task(study: Study, options: Namespace) -> "Task":
    from blocklora.training.task import load_task

    backbone = staged(options.backbone_file, options.scratch)
    pixels = staged(options.test_pixels, options.scratch)
    clock = monotonic()
    task = load_task(study, backbone, options.manifest, pixels, max(1, options.workers))
    logger.info("read weights and class names in %.1f s", monotonic() - clock)
    return task


def _train_one(
    study: Study,
    run: Run,
    task: "Task",
    compute: "Compute",
    shots_list: Path,
    shots_pixels: Path,
    options: Namespace,
    interruption: Interruption,
) -> Path:
    """Do one run under its lock and return the file of its checkpoint."""
    from blocklora.training.lock import hold
    from blocklora.training.loop import CheckpointPolicy
    from blocklora.training.run import run_training

    digest = study.run_digest(run, compute.precision, compute.engine)
    checkpoint = options.checkpoints / f"{digest}.safetensors"
    with hold(checkpoint.with_suffix(".lock"), run.folder) as lock:
        if options.restart:
            checkpoint.unlink(missing_ok=True)
        run_training(
            study,
            run,
            task,
            compute,
            shots_list,
            staged(shots_pixels, options.scratch),
            options.runs / run.folder,
            CheckpointPolicy(checkpoint, digest, options.checkpoint_seconds, lock.require),
            lambda: interruption.signal_name,
        )
    return checkpoint


def _predict(options: Namespace) -> None:
    from blocklora.training.device import require_device
    from blocklora.training.predict import classify

    require_device(options.device, "fp32")
    for path, name, probability in classify(
        options.adapter, options.backbone_file, options.images, options.device
    ):
        print(f"{path}\t{name}\t{probability:.4f}")


def _merge(options: Namespace) -> None:
    from blocklora.training.predict import export_merged

    export_merged(options.adapter, options.backbone_file, options.output)
