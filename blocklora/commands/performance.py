"""Subcommands of `blocklora.performance`."""

import logging
import re
from argparse import ArgumentTypeError, Namespace, _SubParsersAction
from pathlib import Path

from blocklora.commands.arguments import add_command, add_options, positive
from blocklora.engine.precisions import PRECISIONS
from blocklora.errors import UserError
from blocklora.files import write_json, write_text
from blocklora.runs.gpu import claim_gpu

logger = logging.getLogger(__name__)

UNITS = {"MB": 10**6, "GB": 10**9, "MiB": 2**20, "GiB": 2**30}
TOWERS = ("both", "vision", "text")

# What is measured unless said otherwise: minutes on a small CPU, the paper's settings on a GPU.
# The reference is run with few classes on a CPU, where more would take hours.
DEFAULTS = {
    "classes": {"cpu": [10, 50], "cuda": [100, 1000]},
    "batch_sizes": {"cpu": [4], "cuda": [32]},
    "precisions": {"cpu": ["fp32"], "cuda": ["bf16", "fp32"]},
    "towers": {"cpu": ["both"], "cuda": list(TOWERS)},
    "reference_classes": {"cpu": 100, "cuda": 1000},
}


def add_commands(subparsers: _SubParsersAction) -> None:
    """Add this package's subcommands to the command line."""
    plan = add_command(subparsers, _plan)
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
    add_options(plan, "precision", "results")
    plan.add_argument("--output", type=Path, help="JSON file to write")

    bench = add_command(subparsers, _bench)
    add_options(bench, "device")
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


def memory_size(text: str) -> int:
    """Return the bytes of a size such as 8GB or 7.5GiB."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([MG]i?B)", text)
    if match is None or float(match[1]) == 0:
        raise ArgumentTypeError(f"{text!r} is not a size such as 8GB, 7.5GiB or 6000MB")
    return int(float(match[1]) * UNITS[match[2]])


def _plan(options: Namespace) -> None:
    """Say what memory and time every kind of run of a study takes.

    This is said before anything is run, without a GPU, data or weights, together with the chunks in
    which every kind of run will encode.
    """
    from blocklora.engine.plan import USABLE_SHARE
    from blocklora.performance.forecast import forecast, table
    from blocklora.study.files import find_study
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
    found = forecast(study, model_shapes(context), prompts, options.precision, budget, rate)
    print(table(found))
    if options.output is not None:
        write_json(options.output, found)


def _bench(options: Namespace) -> None:
    """Measure the fast engine against the reference.

    Time, memory and operations are those of training steps of both engines, which take turns, on
    random weights. Every combination of the options is measured.
    """
    claim_gpu(options.device)

    from blocklora.backbones.published import published_config
    from blocklora.engine.plan import USABLE_SHARE
    from blocklora.performance.bench import describe, measure, settings
    from blocklora.performance.machine import Machine, facts
    from blocklora.performance.report import document, page, setting_name
    from blocklora.theory.sources import read_shape

    for name, values in DEFAULTS.items():
        if getattr(options, name) is None:
            setattr(options, name, values[options.device])
    if not all(1 <= count <= 1000 for count in options.classes):
        raise UserError(f"--classes {' '.join(map(str, options.classes))}: 1 to 1000 are possible")
    for name, value in (("--rounds", options.rounds), ("--batch-sizes", min(options.batch_sizes))):
        if value < 1:
            raise UserError(f"{name} {value} has to be positive")
    machine = Machine(options.device, options.threads)
    model, is_file = options.model, options.model.endswith(".safetensors")
    clip = read_shape(Path(model)) if is_file else published_config(model)
    classes = sorted(set(options.classes))
    combinations = classes, options.batch_sizes, options.towers, options.precisions
    chosen = list(settings(clip, *combinations))
    for precision in options.precisions:
        machine.prepare(precision)
    budget = options.memory and int(USABLE_SHARE * options.memory)
    found = []
    for number, setting in enumerate(chosen, 1):
        logger.info("setting %d of %d: %s", number, len(chosen), setting_name(describe(setting)))
        with_reference = len(setting.prompts) <= options.reference_classes
        found.append(measure(setting, machine, options.rounds, budget, with_reference))
    content = document(found, facts(machine, options.rounds))
    if options.output is not None:
        write_json(options.output, content)
    if options.page is not None:
        write_text(options.page, page(content))
    print(page(content), end="")
