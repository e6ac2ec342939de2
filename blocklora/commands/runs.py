"""Commands that fit and test methods, and that use what was fitted."""

from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from blocklora.commands import options
from blocklora.errors import UserError

if TYPE_CHECKING:
    from blocklora.runs.job import Job
    from blocklora.study.model import Study


def fit(
    *,
    study: options.Study,
    backbone: options.Backbone,
    dataset: options.Dataset,
    methods: list[str] | None = None,
    shots: options.ManyShots = None,
    seeds: options.Seeds = None,
    restart: bool = False,
    checkpoint_seconds: float = 60,
    results: options.Results = None,
    cache: options.CacheRoot = options.CACHE,
    scratch: options.Scratch = "",
    workers: options.Workers = 0,
    device: options.Device = "cpu",
    precision: options.Precision = "fp32",
    engine: options.Engine = "fast",
) -> None:
    """Fit and test what is missing on a dataset.

    By default these are all runs of the study on the dataset. They share this process. Runs that
    are finished, here or in the cache, are not repeated, and an interrupted run continues from its
    checkpoint. If a run fails, the others are fitted all the same.

    Args:
        methods: Fit only these methods of the study.
        restart: Discard the checkpoints of these runs first.
        checkpoint_seconds: Least time between two checkpoints of a run.

    Examples:
        blocklora fit --study mini --backbone mini-clip --dataset mini_shifted
        blocklora fit --study paper --backbone ViT-B-16-quickgelu --dataset dtd \\
          --methods block_lora --shots 1 2 4 --seeds 1 --device cuda
    """
    from blocklora.runs.interruption import catch_interruption
    from blocklora.study.run import Run

    chosen = options.open_study(study, backbone=backbone, dataset=dataset)
    for name in methods or ():
        options.check_name("fitted method", name, chosen.fitted_methods, where=f"{chosen.path}: ")
    values = methods or chosen.fitted_methods, shots or chosen.shots, seeds or chosen.seeds
    runs = dict.fromkeys(Run(backbone, dataset, *each) for each in product(*values))
    with catch_interruption() as interruption:  # before numpy and torch are imported
        job = _job(
            *(chosen, backbone, dataset, results, cache, scratch),
            *(device, precision, engine, workers),
            checkpoint_seconds=checkpoint_seconds,
            restart=restart,
            interruption=interruption,
        )
        job.fit(runs)


def test(
    *,
    study: options.Study,
    backbone: options.Backbone,
    dataset: options.Dataset,
    method: options.Text,
    shots: options.Shots = None,
    seeds: options.Seeds = None,
    fitted_on: str | None = None,
    results: options.Results = None,
    cache: options.CacheRoot = options.CACHE,
    scratch: options.Scratch = "",
    workers: options.Workers = 0,
    device: options.Device = "cpu",
    precision: options.Precision = "fp32",
    engine: options.Engine = "fast",
) -> None:
    """Test a method on the test images of a dataset.

    The predictions are written below the folder of the run. A method that is not fitted, such as
    zero-shot classification, takes neither --shots nor --seeds.

    Args:
        method: Name of the method in the study.
        fitted_on: Dataset that the method was fitted on, if it is another one.

    Examples:
        blocklora test --study mini --backbone mini-clip --dataset mini_shifted \\
          --method zero_shot
    """
    from blocklora.study.run import Run, Test

    chosen = options.open_study(study, backbone=backbone, dataset=dataset)
    options.check_name("method", method, chosen.methods, where=f"{chosen.path}: ")
    fitted = method in chosen.fitted_methods
    if fitted != bool(seeds) or fitted != (shots is not None):
        raise UserError(
            f"method {method} is {'fitted' if fitted else 'not fitted'}, so it "
            f"{'needs' if fitted else 'takes no'} --shots and --seeds"
        )
    runs = [Run(backbone, fitted_on or dataset, method, shots or 0, seed) for seed in seeds or [0]]
    how = device, precision, engine, workers
    job = _job(chosen, backbone, dataset, results, cache, scratch, *how)
    job.test(Test(run, dataset) for run in runs)


def _job(
    study: "Study",
    backbone: str,
    dataset: str,
    results: Path | None,
    cache: Path,
    scratch: str,
    *how: Any,
    **further: Any,
) -> "Job":
    from blocklora.cache import Cache
    from blocklora.methods.base import Compute
    from blocklora.runs.job import Job

    folder = options.results_of(study, results)
    return Job(study, backbone, dataset, folder, Cache(cache), Compute(*how), scratch, **further)


def gate(
    *,
    predictions: options.File,
    backbone: options.Backbone,
    dataset: options.Dataset,
    mode: Literal["stop", "warn"] = "stop",
    output: options.Output,
) -> None:
    """Compare a zero-shot accuracy with the known one.

    Known accuracies were published or measured independently. If the difference is larger than the
    tolerance, something is wrong with the split, the preprocessing or the weights, and the command
    fails.

    Args:
        predictions: Predictions of the zero-shot test.
        mode: Fail, or only warn, if the accuracies differ.

    Examples:
        blocklora gate --predictions test.safetensors --backbone ViT-B-16-quickgelu \\
          --dataset dtd --output gate.json
    """
    from blocklora.runs.gate import gate

    gate(predictions, backbone, dataset, mode, output)


def predict(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Image files.")],
    *,
    adapter: options.Adapter,
    backbone_file: options.BackboneFile,
    device: options.Device = "cpu",
) -> None:
    """Classify images with a trained adapter.

    A line for each image has its file, its class and the probability of the class, separated by
    tabs.

    Examples:
        blocklora predict --adapter adapter.safetensors --backbone-file backbone.safetensors \\
          photo.jpg
    """
    from blocklora.runs.device import require_device
    from blocklora.runs.predict import classify

    require_device(device, "fp32")
    for path, name, probability in classify(adapter, backbone_file, images, device):
        print(f"{path}\t{name}\t{probability:.4f}")


def merge(
    *, adapter: options.Adapter, backbone_file: options.BackboneFile, output: options.Output
) -> None:
    """Fold a trained adapter into plain open_clip weights.

    Examples:
        blocklora merge --adapter adapter.safetensors --backbone-file backbone.safetensors \\
          --output merged.safetensors
    """
    from blocklora.runs.predict import export_merged

    export_merged(adapter, backbone_file, output)
