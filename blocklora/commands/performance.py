"""Subcommands of `blocklora.performance`."""

import logging
import re
from argparse import ArgumentTypeError, Namespace, _SubParsersAction
from pathlib import Path
from typing import TYPE_CHECKING

from blocklora.commands.arguments import positive
from blocklora.commands.theory import add_results
from blocklora.engine.precisions import PRECISIONS
from blocklora.errors import UserError

if TYPE_CHECKING:
    from blocklora.backbones.config import ClipConfig

logger = logging.getLogger(__name__)

UNITS = {"MB": 10**6, "GB": 10**9, "MiB": 2**20, "GiB": 2**30}
TOWERS = ("both", "vision", "text")

# What is measured unless said otherwise: minutes on a small CPU, the paper's settings on a GPU.
CLASSES = {"cpu": [10, 50], "cuda": [100, 1000]}
BATCH_SIZES = {"cpu": [4], "cuda": [32]}
MEASURED_PRECISIONS = {"cpu": ["fp32"], "cuda": ["bf16", "fp32"]}
MEASURED_TOWERS = {"cpu": ["both"], "cuda": ["both", "vision", "text"]}
# Most classes with which the reference is run: more would take hours on a CPU.
REFERENCE_CLASSES = {"cpu": 100, "cuda": 1000}


def add_commands(subparsers: _SubParsersAction) -> None:
    """Add this package's subcommands to the command line."""
    _add_plan(subparsers)
    _add_bench(subparsers)


def _add_plan(subparsers: _SubParsersAction) -> None:
    plan = subparsers.add_parser(
        "plan",
        help="say what memory and time every kind of run of a study takes",
        description="Say, before anything is run and without a GPU, data or weights, how much "
        "memory every kind of run takes, in which chunks it will encode, and how long it takes.",
    )
    plan.add_argument("--study", required=True, help="study file, or name of one in studies/")
    plan.add_argument(
        "--gpu-memory", type=memory_size, required=True, help="of the GPU, for example 8GB"
    )
    plan.add_argument(
        "--rate",
        type=float,
        metavar="TFLOPS",
        help="10^12 operations per second that a step achieves, as measured by `blocklora bench`",
    )
    plan.add_argument("--precision", choices=tuple(PRECISIONS), default="fp32")
    add_results(plan)
    plan.add_argument("--output", type=Path, help="JSON file to write")
    plan.set_defaults(run=_plan)


def _add_bench(subparsers: _SubParsersAction) -> None:
    bench = subparsers.add_parser(
        "bench",
        help="measure the fast engine against the reference",
        description="Measure time, memory and operations of training steps of both engines, which "
        "take turns, on random weights. Every combination of the options is measured.",
    )
    bench.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    bench.add_argument(
        "--model",
        default="ViT-B-16-quickgelu",
        help="a published model, or a backbone file, of which only the shape is used",
    )
    bench.add_argument(
        "--classes", type=int, nargs="+", help="1 to 1000: the first of ImageNet's names"
    )
    bench.add_argument("--batch-sizes", type=int, nargs="+")
    bench.add_argument("--towers", choices=TOWERS, nargs="+", help="which are adapted")
    bench.add_argument("--precisions", choices=tuple(PRECISIONS), nargs="+")
    bench.add_argument(
        "--reference-classes",
        type=int,
        metavar="N",
        help="run the reference with at most N classes, extrapolate beyond "
        "(default: 100 on a CPU, 1000 on a GPU)",
    )
    bench.add_argument(
        "--memory", type=memory_size, help="encode in chunks that fit, for example 4GB"
    )
    bench.add_argument("--threads", type=positive, help="of the CPU (default: PyTorch's choice)")
    bench.add_argument("--rounds", type=int, default=5, help="turns of each engine (default: 5)")
    bench.add_argument("--output", type=Path, help="JSON file to write")
    bench.add_argument("--page", type=Path, help="Markdown file to write")
    bench.set_defaults(run=_bench)


def memory_size(text: str) -> int:
    """Return the bytes of a size such as 8GB or 7.5GiB."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([MG]i?B)", text)
    if match is None or float(match[1]) == 0:
        raise ArgumentTypeError(f"{text!r} is not a size such as 8GB, 7.5GiB or 6000MB")
    return int(float(match[1]) * UNITS[match[2]])


def _plan(options: Namespace) -> None:
    from blocklora.engine.plan import USABLE_SHARE
    from blocklora.files import write_json
    from blocklora.performance.forecast import document, forecasts, table
    from blocklora.study.config import find_study
    from blocklora.study.model import load_study
    from blocklora.theory.context import Context
    from blocklora.theory.sources import dataset_prompts, model_shapes

    if options.rate is not None and options.rate <= 0:
        raise UserError(f"--rate {options.rate} has to be positive")
    study = load_study(find_study(options.study, "studies"))
    budget = int(USABLE_SHARE * options.gpu_memory)
    rate = None if options.rate is None else options.rate * 1e12
    context = Context(study, options.results or Path("results", study.name))
    templates = {study.methods[name].recipe.prompt for name in study.adapter_methods}
    prompts = {template: dataset_prompts(context, template) for template in templates}
    shapes = model_shapes(context)
    kinds = list(forecasts(study, shapes, prompts, options.precision, budget))
    print(table(kinds, rate))
    if options.output is not None:
        write_json(options.output, document(study, kinds, options.precision, budget, rate))


def _bench(options: Namespace) -> None:
    from blocklora.files import write_json, write_text
    from blocklora.runs.gpu import claim_gpu

    device = options.device
    claim_gpu(device)

    from blocklora.engine.plan import USABLE_SHARE
    from blocklora.performance.bench import measure, settings
    from blocklora.performance.machine import Machine, facts
    from blocklora.performance.report import document, page

    classes = options.classes or CLASSES[device]
    batch_sizes = options.batch_sizes or BATCH_SIZES[device]
    limit = options.reference_classes
    if limit is None:
        limit = REFERENCE_CLASSES[device]
    if not all(1 <= count <= 1000 for count in classes):
        raise UserError(f"--classes {' '.join(map(str, classes))}: 1 to 1000 are possible")
    for name, value in (("--rounds", options.rounds), ("--batch-sizes", min(batch_sizes))):
        if value < 1:
            raise UserError(f"{name} {value} has to be positive")
    machine = Machine(device, options.threads)
    chosen = list(
        settings(
            _shape(options.model),
            sorted(set(classes)),
            batch_sizes,
            options.towers or MEASURED_TOWERS[device],
            options.precisions or MEASURED_PRECISIONS[device],
        )
    )
    for precision in {setting.precision for setting in chosen}:
        machine.prepare(precision)
    budget = options.memory and int(USABLE_SHARE * options.memory)
    found = []
    for number, setting in enumerate(chosen, 1):
        logger.info(
            "setting %d of %d: %d classes, batches of %d, %s, %s",
            number,
            len(chosen),
            len(setting.prompts),
            setting.batch_size,
            " and ".join(setting.adapter.towers),
            setting.precision,
        )
        with_reference = len(setting.prompts) <= limit
        found.append(measure(setting, machine, options.rounds, budget, with_reference))
    about = facts(machine, options.rounds)
    if options.output is not None:
        write_json(options.output, document(found, about))
    if options.page is not None:
        write_text(options.page, page(found, about))
    print(page(found, about), end="")


def _shape(model: str) -> "ClipConfig":
    from blocklora.backbones.published import published_config
    from blocklora.theory.sources import read_shape

    return read_shape(Path(model)) if model.endswith(".safetensors") else published_config(model)
