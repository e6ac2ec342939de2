"""The subcommands `plan` and `bench`."""

import re
from argparse import ArgumentTypeError, Namespace, _SubParsersAction
from pathlib import Path

UNITS = {"MB": 10**6, "GB": 10**9, "MiB": 2**20, "GiB": 2**30}


def add_performance_commands(subparsers: _SubParsersAction) -> None:
    """Add the subcommands to the command line."""
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
    plan.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32")
    plan.add_argument(
        "--backbones",
        type=Path,
        nargs="*",
        default=[],
        metavar="FILE",
        help="files <backbone>.safetensors; not needed for OpenAI's models",
    )
    plan.add_argument(
        "--manifests",
        type=Path,
        nargs="*",
        default=[],
        metavar="FILE",
        help="files <dataset>/manifest.csv; not needed for the datasets of the paper",
    )
    plan.add_argument("--output", type=Path, help="JSON file to write")
    plan.set_defaults(run=_plan)


def memory_size(text: str) -> int:
    """Return the bytes of a size such as 8GB or 7.5GiB."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([MG]i?B)", text)
    if match is None or float(match[1]) == 0:
        raise ArgumentTypeError(f"{text!r} is not a size such as 8GB, 7.5GiB or 6000MB")
    return int(float(match[1]) * UNITS[match[2]])


def _plan(options: Namespace) -> None:
    from blocklora.errors import UserError
    from blocklora.files import write_json
    from blocklora.study.config import find_study
    from blocklora.study.model import load_study
    from blocklora.theory.sources import dataset_prompts, model_shapes
    from blocklora.training.forecast import document, forecasts, table
    from blocklora.training.plan import USABLE_SHARE

    if options.rate is not None and options.rate <= 0:
        raise UserError(f"--rate {options.rate} has to be positive")
    study = load_study(find_study(options.study, "studies"))
    budget = int(USABLE_SHARE * options.gpu_memory)
    rate = None if options.rate is None else options.rate * 1e12
    prompts = dataset_prompts(study, options.manifests)
    shapes = model_shapes(study, options.backbones)
    kinds = list(forecasts(study, shapes, prompts, options.precision, budget))
    print(table(kinds, rate))
    if options.output is not None:
        write_json(options.output, document(study, kinds, options.precision, budget, rate))
