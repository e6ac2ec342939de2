"""Commands that plan the memory and time of runs, and that measure the engines."""

import re
from enum import StrEnum
from math import inf
from pathlib import Path
from typing import Annotated

from typer import BadParameter, Option

from blocklora.commands import options
from blocklora.engine.precisions import PRECISIONS, resolve_precision
from blocklora.errors import UserError

UNITS = {"MB": 10**6, "GB": 10**9, "MiB": 2**20, "GiB": 2**30}
# typer takes lists of an Enum, but not of a Literal. These have the words as lower-case values.
TowerChoice = StrEnum("TowerChoice", ["both", "vision", "text"])
PrecisionChoice = StrEnum("PrecisionChoice", [*PRECISIONS])


def memory_size(text: str) -> int:
    """Return the bytes of a size such as 8GB or 7.5GiB."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([MG]i?B)", text)
    if match is None or float(match[1]) == 0:
        raise BadParameter(f"{text!r} is not a size such as 8GB, 7.5GiB or 6000MB")
    return int(float(match[1]) * UNITS[match[2]])


SIZE = Option(metavar="SIZE", parser=memory_size)


def plan(
    study: options.Study,
    gpu_memory: Annotated[int, SIZE],
    rate: float | None = None,
    precision: options.Precision = "auto",
    results: options.Results = None,
    output: options.JsonOutput = None,
) -> None:
    """Predict the memory and time of every kind of run.

    It also shows the chunks in which each kind of run will encode. This needs no GPU, no weights of
    published models and no images of published datasets.

    Args:
        gpu_memory: Memory of the GPU, for example 8GB.
        rate: Speed of a training step in TFLOP/s. In the table of `blocklora bench`, it is the
            column "rate TFLOP/s" times the column "share of rate".

    Example: blocklora plan --study paper --gpu-memory 8GB --rate 100
    """
    from blocklora.engine.plan import USABLE_SHARE
    from blocklora.files import write_json
    from blocklora.performance.forecast import forecast, table
    from blocklora.theory.context import Context
    from blocklora.theory.sources import dataset_prompts, model_shapes

    if rate is not None and not 0 < rate < inf:
        raise UserError(f"--rate {rate} is not a positive number")
    chosen = options.open_study(study)
    context = Context(chosen, options.results_of(chosen, results))
    templates = {chosen.methods[name].recipe.prompt for name in chosen.adapter_methods}
    prompts = {template: dataset_prompts(context, template) for template in templates}
    budget, speed = int(USABLE_SHARE * gpu_memory), rate and rate * 1e12
    precision = resolve_precision(precision, "cuda")
    found = forecast(chosen, model_shapes(context), prompts, precision, budget, speed)
    print(table(found))
    if output is not None:
        write_json(output, found)


def bench(
    device: options.Device = "cpu",
    model: str = "ViT-B-16-quickgelu",
    classes: Annotated[list[int] | None, Option(min=1, max=1000)] = None,
    batch_sizes: Annotated[list[int] | None, Option(min=1)] = None,
    towers: list[TowerChoice] | None = None,
    precisions: list[PrecisionChoice] | None = None,
    memory: Annotated[int | None, SIZE] = None,
    threads: Annotated[int | None, Option(min=1)] = None,
    rounds: Annotated[int, Option(min=1)] = 5,
    output: options.JsonOutput = None,
    page: Path | None = None,
) -> None:
    """Measure the fast engine against the reference.

    Both engines take turns at training steps on random weights. Their time, memory and operations
    are measured for every combination of the options, in the order in which these are given. The
    files are written after each of them, and the same call continues if it was cut off.

    Args:
        model: A published model, or a backbone file, of which only the shape is used.
        classes: Numbers of classes; their names are the first ones of ImageNet.
        batch_sizes: Images per batch.
        towers: The towers that are adapted.
        precisions: Precisions of matrix products.
        memory: Encode in chunks that fit into this memory, for example 4GB.
        threads: Number of CPU threads (default: chosen by PyTorch).
        rounds: Number of turns of each engine; on a GPU there are fewer if they take long.
        page: Markdown file to write as well.

    Example: blocklora bench
    Example: blocklora bench --classes 50 100 1000 --batch-sizes 8 --threads 2
        --memory 2.5GB --output bench-cpu.json --page bench-cpu.md
    """
    from blocklora.runs.gpu import claim_gpu

    claim_gpu(device)  # before torch is imported

    from blocklora.performance.bench import bench
    from blocklora.performance.report import page as page_of

    found = bench(
        device=device,
        model=model,
        classes=classes,
        batch_sizes=batch_sizes,
        towers=towers,
        precisions=precisions,
        memory=memory,
        threads=threads,
        rounds=rounds,
        output=output,
        page=page,
    )
    print(page_of(found), end="")
