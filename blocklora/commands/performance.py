"""Commands that plan the memory and time of runs, and measure the engines."""

import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from blocklora.commands import options
from blocklora.engine.precisions import PRECISIONS
from blocklora.errors import UserError

UNITS = {"MB": 10**6, "GB": 10**9, "MiB": 2**20, "GiB": 2**30}
# typer takes lists of an Enum, but not of a Literal.
Tower = StrEnum("Tower", ["both", "vision", "text"])
Precision = StrEnum("Precision", [*PRECISIONS])


def memory_size(text: str) -> int:
    """Return the bytes of a size such as 8GB or 7.5GiB."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([MG]i?B)", text)
    if match is None or float(match[1]) == 0:
        raise typer.BadParameter(f"{text!r} is not a size such as 8GB, 7.5GiB or 6000MB")
    return int(float(match[1]) * UNITS[match[2]])


SIZE = typer.Option(parser=memory_size, metavar="SIZE")


def plan(
    *,
    study: options.Study,
    gpu_memory: Annotated[int, SIZE],
    rate: float | None = None,
    precision: options.Precision = "fp32",
    results: options.Results = None,
    output: Path | None = None,
) -> None:
    """Predict the memory and time of every kind of run.

    This needs no GPU, no weights of published models and no images of published datasets. It also
    shows the chunks in which each kind of run will encode.

    Args:
        gpu_memory: Memory of the GPU, such as 8GB.
        rate: Operations that a step achieves, in 10^12 per second, as `blocklora bench` measures.
        output: JSON file to write as well.

    Examples:
        blocklora plan --study paper --gpu-memory 8GB --precision bf16 --rate 100
    """
    from blocklora.engine.plan import USABLE_SHARE
    from blocklora.files import write_json
    from blocklora.performance.forecast import forecast, table
    from blocklora.theory.context import Context
    from blocklora.theory.sources import dataset_prompts, model_shapes

    if rate is not None and rate <= 0:
        raise UserError(f"--rate {rate} has to be positive")
    chosen = options.open_study(study)
    context = Context(chosen, options.results_of(chosen, results))
    templates = {chosen.methods[name].recipe.prompt for name in chosen.adapter_methods}
    prompts = {template: dataset_prompts(context, template) for template in templates}
    budget, speed = int(USABLE_SHARE * gpu_memory), rate and rate * 1e12
    found = forecast(chosen, model_shapes(context), prompts, precision, budget, speed)
    print(table(found))
    if output is not None:
        write_json(output, found)


def bench(
    *,
    device: options.Device = "cpu",
    model: str = "ViT-B-16-quickgelu",
    classes: Annotated[list[int] | None, typer.Option(min=1, max=1000)] = None,
    batch_sizes: Annotated[list[int] | None, typer.Option(min=1)] = None,
    towers: list[Tower] | None = None,
    precisions: list[Precision] | None = None,
    reference_classes: int | None = None,
    memory: Annotated[int | None, SIZE] = None,
    threads: Annotated[int | None, typer.Option(min=1)] = None,
    rounds: options.Count = 5,
    output: Path | None = None,
    page: Path | None = None,
) -> None:
    """Measure the fast engine against the reference.

    Both engines take turns at training steps on random weights. Their time, memory and operations
    are measured for every combination of the options. The default is a few small settings on a CPU,
    and those of the paper on a GPU.

    Args:
        model: A published model, or a backbone file, of which only the shape is used.
        classes: Use this many classes, the first of ImageNet.
        batch_sizes: Images per batch.
        towers: Towers that have an adapter.
        precisions: Precisions of matrix products.
        reference_classes: Run the reference with at most so many classes and extrapolate beyond
            (default: 100 on a CPU, 1000 on a GPU).
        memory: Encode in chunks that fit into this memory, such as 4GB.
        threads: Number of CPU threads (default: PyTorch's choice).
        rounds: Turns of each engine.
        output: JSON file to write as well.
        page: Markdown file to write as well.

    Examples:
        blocklora bench
        blocklora bench --classes 50 100 1000 --batch-sizes 8 --threads 2 \\
          --memory 2.5GB --output bench-cpu.json --page bench-cpu.md
    """
    from blocklora.runs.gpu import claim_gpu

    claim_gpu(device)  # before torch is imported

    from blocklora.files import write_json, write_text
    from blocklora.performance import report

    found = report.bench(
        device=device,
        model=model,
        classes=classes,
        batch_sizes=batch_sizes,
        towers=towers,
        precisions=precisions,
        reference_classes=reference_classes,
        memory=memory,
        threads=threads,
        rounds=rounds,
    )
    if output is not None:
        write_json(output, found)
    if page is not None:
        write_text(page, report.page(found))
    print(report.page(found), end="")
