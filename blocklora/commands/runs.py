"""Commands that fit and test methods, and commands that use fitted adapters."""

from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from typer import Argument, Option

from blocklora.commands import options
from blocklora.engine.precisions import resolve_precision
from blocklora.errors import UserError

if TYPE_CHECKING:
    from blocklora.runs.job import Job
    from blocklora.study.study import Study

Scratch = Annotated[str, Option(help="Folder for copies of weights and pixels, such as $TMPDIR.")]
Workers = Annotated[
    int, Option(min=0, help="Threads that prepare batches ahead and decode missing pixels.")
]
GpuJobs = Annotated[
    int, Option(min=1, help="Jobs that may compute on this machine's GPUs at a time.")
]
Adapter = Annotated[Path, Option(help="The adapter.safetensors of a finished run.")]
BackboneFile = Annotated[Path, Option(help="The backbone file that the adapter was trained on.")]


def fit(
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
    scratch: Scratch = "",
    device: options.Device = "cpu",
    precision: options.Precision = "auto",
    engine: options.Engine = "fast",
    workers: Workers = 0,
    gpu_jobs: GpuJobs = 1,
) -> None:
    """Fit and test the missing runs of a backbone on a dataset.

    By default these are all such runs of the study. Runs that are finished, here or in the cache,
    are not repeated, and an interrupted run continues from its checkpoint. If a run fails, the
    others are fitted all the same.

    Args:
        methods: Names of methods in the study.
        restart: First discard the checkpoints of these runs.
        checkpoint_seconds: Least time in seconds between two checkpoints of a run.

    Example: blocklora fit --study mini --backbone mini-clip --dataset mini_shifted
    Example: blocklora fit --study paper --backbone ViT-B-16-quickgelu
        --dataset dtd --methods block_lora --shots 1 2 4 --seeds 1 --device cuda
    """
    from blocklora.runs.interruption import catch_interruption
    from blocklora.study.run import Run

    chosen = options.open_study(study)
    for name in methods or ():
        options.check_name("fitted method", name, chosen.fitted_methods)
    wanted = methods or chosen.fitted_methods, shots or chosen.shots, seeds or chosen.seeds
    runs = dict.fromkeys(Run(backbone, dataset, *values) for values in product(*wanted))
    compute = device, resolve_precision(precision, device), engine, workers
    with catch_interruption() as interruption:  # before numpy and torch are imported
        further = scratch, gpu_jobs, checkpoint_seconds, restart, interruption
        _job(chosen, backbone, dataset, results, cache, compute, *further).fit(runs)


def test(
    study: options.Study,
    backbone: options.Backbone,
    dataset: options.Dataset,
    method: Annotated[str, Option()],
    shots: options.Shots = None,
    seeds: options.Seeds = None,
    fitted_on: str | None = None,
    results: options.Results = None,
    cache: options.CacheRoot = options.CACHE,
    scratch: Scratch = "",
    device: options.Device = "cpu",
    precision: options.Precision = "auto",
    engine: options.Engine = "fast",
    workers: Workers = 0,
    gpu_jobs: GpuJobs = 1,
) -> None:
    """Test a method on the test images of a dataset.

    The predictions are written to the folders of the runs. A method that is not fitted, such as
    zero-shot classification, has neither --shots nor --seeds.

    Args:
        method: Name of the method in the study.
        fitted_on: Dataset that the method was fitted on, if it is not --dataset.

    Example: blocklora test --study mini --backbone mini-clip --dataset mini_shifted
        --method zero_shot
    """
    from blocklora.study.run import Run, Test

    chosen = options.open_study(study)
    options.check_name("method", method, chosen.methods)
    fitted = method in chosen.fitted_methods
    if fitted != bool(seeds) or fitted != (shots is not None):
        raise UserError(
            f"method {method} is {'fitted' if fitted else 'not fitted'}: it "
            f"{'needs' if fitted else 'has no'} --shots and --seeds"
        )
    if fitted_on is not None:
        if not fitted:
            raise UserError(f"method {method} is not fitted: it has no --fitted-on")
        options.check_name("dataset", fitted_on, chosen.datasets)
    cell = backbone, fitted_on or dataset, method
    compute = device, resolve_precision(precision, device), engine, workers
    job = _job(chosen, backbone, dataset, results, cache, compute, scratch, gpu_jobs)
    job.test(Test(Run(*cell, shots or 0, seed), dataset) for seed in seeds or [0])


def _job(
    study: "Study",
    backbone: str,
    dataset: str,
    results: Path | None,
    cache: Path,
    compute: tuple[str, str, str, int],
    *further: Any,
) -> "Job":
    from blocklora.cache import Cache
    from blocklora.methods.base import Compute
    from blocklora.runs.job import Job

    options.check_name("backbone", backbone, study.backbones)
    options.check_name("dataset", dataset, study.datasets)
    where = options.results_of(study, results), Cache(cache)
    return Job(study, backbone, dataset, *where, Compute(*compute), *further)


def gate(
    predictions: options.RequiredPath,
    backbone: options.Backbone,
    dataset: options.Dataset,
    output: options.Output,
    mode: Literal["stop", "warn"] = "stop",
) -> None:
    """Compare a zero-shot accuracy with the known one.

    Accuracies are known if they were published or measured independently. A difference larger than
    the tolerance means that the split, the preprocessing or the weights are wrong.

    Args:
        predictions: Predictions of the zero-shot test.
        mode: stop fails if the difference is too large, and warn only logs a warning.

    Example: blocklora gate --predictions test.safetensors
        --backbone ViT-B-16-quickgelu --dataset dtd --output gate.json
    """
    from blocklora.runs.gate import gate

    gate(predictions, backbone, dataset, mode, output)


def predict(
    adapter: Adapter,
    backbone_file: BackboneFile,
    images: Annotated[list[Path], Argument(help="Image files.")],
    device: options.Device = "cpu",
) -> None:
    """Classify images with a trained adapter.

    For each image, a line with the file, the predicted class and its probability is printed,
    separated by tabs.

    Example: blocklora predict --adapter adapter.safetensors
        --backbone-file backbone.safetensors photo.jpg
    """
    from blocklora.runs.gpu import claim_gpu

    claim_gpu(device)  # before torch is imported
    from blocklora.runs.device import require_device
    from blocklora.runs.predict import classify

    require_device(device, "fp32")
    for path, name, probability in classify(adapter, backbone_file, images, device):
        print(f"{path}\t{name}\t{probability:.4f}")


def merge(adapter: Adapter, backbone_file: BackboneFile, output: options.Output) -> None:
    """Fold a trained adapter into plain open_clip weights.

    Example: blocklora merge --adapter adapter.safetensors
        --backbone-file backbone.safetensors --output merged.safetensors
    """
    from blocklora.runs.predict import export_merged

    export_merged(adapter, backbone_file, output)
