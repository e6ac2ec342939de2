"""Subcommands that fit and test methods, and that use what was fitted."""

from argparse import ArgumentParser, Namespace, _SubParsersAction
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blocklora.commands.arguments import add_command, add_options, natural, positive
from blocklora.engine.engines import ENGINES
from blocklora.errors import UserError
from blocklora.runs.interruption import catch_interruption
from blocklora.study.model import Study, load_study
from blocklora.study.run import Run, Test

if TYPE_CHECKING:
    from blocklora.runs.job import Job


def add_commands(subparsers: _SubParsersAction) -> None:
    """Add these subcommands to the command line."""
    fit = add_command(subparsers, _fit)
    _add_job_arguments(fit)
    fit.add_argument("--methods", nargs="+", metavar="NAME", help="only these methods of the study")
    fit.add_argument("--shots", type=positive, nargs="+", help="only these training images a class")
    fit.add_argument("--seeds", type=natural, nargs="+", help="only these seeds")
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
    _add_job_arguments(test)
    test.add_argument("--method", required=True, help="name of the method in the study")
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


def _add_job_arguments(parser: ArgumentParser) -> None:
    add_options(parser, "study", "backbone", "dataset", "results", "cache")
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


def _fit(options: Namespace) -> None:
    """Fit and test what is missing of a study on a dataset.

    All runs of the dataset share the process, or those that the options name. A run that was
    interrupted goes on from its checkpoint, and what is finished, here or in the cache, is not done
    again. A run that fails does not keep the others from being fitted.
    """
    study = load_study(options.study)
    wanted = {
        "method": options.methods or study.fitted_methods,
        "shots": options.shots or study.shots,
        "seed": options.seeds or study.seeds,
    }
    for name in wanted["method"]:
        if name not in study.fitted_methods:
            raise UserError(
                f"{options.study}: {name!r} is not a method that is fitted; "
                f"there are {', '.join(study.fitted_methods)}"
            )
    runs = [Run(options.backbone, options.dataset, *values) for values in product(*wanted.values())]
    with catch_interruption() as interruption:
        job = _job(
            study,
            options,
            checkpoint_seconds=options.checkpoint_seconds,
            restart=options.restart,
            interruption=interruption,
        )
        job.fit(runs)


def _test(options: Namespace) -> None:
    """Test methods that were fitted, or one that needs no fitting.

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
    cell = options.backbone, options.fitted_on or options.dataset, options.method
    runs = [Run(*cell, options.shots or 0, seed) for seed in options.seeds or [0]]
    _job(study, options).test(Test(run, options.dataset) for run in runs)


def _job(study: Study, options: Namespace, **further: Any) -> "Job":
    from blocklora.cache import Cache
    from blocklora.methods.base import Compute
    from blocklora.runs.job import Job

    for kind, known, name in (
        ("backbone", study.backbones, options.backbone),
        ("dataset", study.datasets, options.dataset),
    ):
        if name not in known:
            raise UserError(
                f"{options.study}: there is no {kind} {name!r}; there are {', '.join(known)}"
            )
    return Job(
        study,
        options.backbone,
        options.dataset,
        options.results or Path("results", study.name),
        Cache(options.cache),
        Compute(options.device, options.precision, options.engine, options.workers),
        options.scratch,
        **further,
    )


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
