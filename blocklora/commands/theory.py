"""Subcommands of `blocklora.theory`."""

from argparse import ArgumentParser, Namespace, _SubParsersAction
from pathlib import Path

from blocklora.errors import UserError

MAX_LOSS = 0.01
DELTA = 0.05


def add_commands(subparsers: _SubParsersAction) -> None:
    """Add this package's subcommands to the command line."""
    _add_bounds(subparsers)
    _add_gaps(subparsers)
    _add_spectra(subparsers)
    _add_compression(subparsers)
    _add_efficiency(subparsers)


def _add_bounds(subparsers: _SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "bounds",
        help="compute the information-theoretic bounds of a study",
        description="Compute sqrt(2 q sigma² ln 2 · P / N) for every dataset, shot count and "
        "method of a study, for the other partition, and for training B or A alone.",
    )
    _add_study_arguments(parser)
    parser.add_argument("--bits", type=int, default=32, help="stored bits of a parameter")
    parser.add_argument("--sigma", type=float, default=0.5, help="sub-Gaussian parameter")
    parser.set_defaults(run=_bounds)


def _add_gaps(subparsers: _SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "gaps",
        help="compare measured generalization gaps with their bounds",
        description="Write training minus test accuracy of every adapted run beside its bound. "
        "Fails where a run trained another number of parameters than its bound assumes.",
    )
    _add_aggregate(parser)
    parser.add_argument("--bounds", type=Path, required=True, help="bounds.csv")
    _add_output(parser)
    parser.set_defaults(run=_gaps)


def _add_spectra(subparsers: _SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "spectra",
        help="compute the spectra of the trained updates",
        description="Write effective rank, norms and the difference between arms of every "
        "adapted matrix of every run, and how far Block-LoRA and LoRA share their subspaces.",
    )
    parser.add_argument("--study", type=Path, required=True, help="study file")
    _add_aggregate(parser)
    parser.add_argument("--runs", type=Path, required=True, help="folder of the runs")
    _add_output(parser)
    parser.add_argument("--overlaps", type=Path, required=True, help="overlaps.csv to write")
    parser.set_defaults(run=_spectra)


def _add_compression(subparsers: _SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "compression",
        help="compute compression bounds of the trained adapters",
        description="Write every adapter down in few bits with its training accuracy kept, and "
        "the bound of the error rate that follows from their number.",
    )
    parser.add_argument("--study", type=Path, required=True, help="study file")
    _add_aggregate(parser)
    parser.add_argument("--results", type=Path, required=True, help="folder of the study's results")
    parser.add_argument(
        "--max-loss",
        type=float,
        default=MAX_LOSS,
        help=f"training accuracy that compression may cost, as a fraction (default: {MAX_LOSS})",
    )
    parser.add_argument(
        "--delta",
        type=float,
        default=DELTA,
        help=f"probability with which a bound may fail (default: {DELTA})",
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    _add_precision(parser)
    _add_output(parser)
    parser.set_defaults(run=_compression)


def _add_efficiency(subparsers: _SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "efficiency",
        help="compute what LoRA and Block-LoRA cost",
        description="Write parameters, bytes, operations and planned memory of LoRA and "
        "Block-LoRA at several ranks and numbers of blocks, for every dataset of a study.",
    )
    _add_study_arguments(parser)
    _add_precision(parser)
    parser.set_defaults(run=_efficiency)


def _add_study_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--study", type=Path, required=True, help="study file")
    add_shape_arguments(parser)
    _add_output(parser)


def add_shape_arguments(parser: ArgumentParser) -> None:
    """Add the files that tell the shapes of backbones and the class names of datasets."""
    parser.add_argument(
        "--backbones",
        type=Path,
        nargs="*",
        default=[],
        metavar="FILE",
        help="files <backbone>.safetensors whose shapes are taken instead of the described ones",
    )
    parser.add_argument(
        "--manifests",
        type=Path,
        nargs="*",
        default=[],
        metavar="FILE",
        help="files <dataset>/manifest.csv; not needed for the datasets of the paper",
    )


def _add_aggregate(parser: ArgumentParser) -> None:
    parser.add_argument("--aggregate", type=Path, required=True, help="runs.csv")


def _add_precision(parser: ArgumentParser) -> None:
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32")


def _add_output(parser: ArgumentParser) -> None:
    parser.add_argument("--output", type=Path, required=True, help="CSV file to write")


def _bounds(options: Namespace) -> None:
    from blocklora.csvfiles import write_rows
    from blocklora.study.model import load_study
    from blocklora.theory.bounds import COLUMNS, bound_rows, counts
    from blocklora.theory.sources import class_counts, model_shapes

    if options.bits < 1 or options.sigma <= 0:
        raise UserError("--bits must be at least 1 and --sigma positive")
    study = load_study(options.study)
    classes = class_counts(study, options.manifests)
    methods = {name: study.methods[name].adapter for name in study.adapter_methods}
    rows = [
        row
        for backbone, clip in model_shapes(study, options.backbones).items()
        for row in bound_rows(
            backbone,
            counts(methods, clip.tower_shapes),
            classes,
            study.shots,
            options.bits,
            options.sigma,
        )
    ]
    write_rows(options.output, COLUMNS, rows)


def _gaps(options: Namespace) -> None:
    from blocklora.csvfiles import read_rows, write_rows
    from blocklora.theory.gaps import BOUND_COLUMNS, COLUMNS, RUN_COLUMNS, gap_rows
    from blocklora.theory.sources import adapted_runs

    runs = adapted_runs(options.aggregate, RUN_COLUMNS)
    write_rows(options.output, COLUMNS, gap_rows(runs, read_rows(options.bounds, BOUND_COLUMNS)))


def _spectra(options: Namespace) -> None:
    from blocklora.csvfiles import write_rows
    from blocklora.study.model import load_study
    from blocklora.theory.comparison import compare_runs
    from blocklora.theory.sources import adapted_runs
    from blocklora.theory.spectra import COLUMNS, OVERLAP_COLUMNS

    runs = [run for run, _ in adapted_runs(options.aggregate)]
    rows, overlaps = compare_runs(load_study(options.study), runs, options.runs)
    write_rows(options.output, COLUMNS, rows)
    write_rows(options.overlaps, OVERLAP_COLUMNS, overlaps)


def _compression(options: Namespace) -> None:
    if not 0 < options.delta < 0.25 or not 0 <= options.max_loss < 1:
        raise UserError("--delta must lie between 0 and 0.25, --max-loss between 0 and 1")

    from blocklora.csvfiles import write_rows
    from blocklora.runs.device import require_device
    from blocklora.study.model import load_study
    from blocklora.theory.compression import COLUMNS
    from blocklora.theory.guarantees import compression_rows
    from blocklora.theory.sources import adapted_runs

    require_device(options.device, options.precision)
    runs = [run for run, _ in adapted_runs(options.aggregate)]
    rows = compression_rows(
        load_study(options.study),
        options.results,
        runs,
        options.device,
        options.precision,
        options.max_loss,
        options.delta,
    )
    write_rows(options.output, COLUMNS, rows)


def _efficiency(options: Namespace) -> None:
    from blocklora.csvfiles import write_rows
    from blocklora.study.model import load_study
    from blocklora.theory.efficiency import COLUMNS, efficiency_rows
    from blocklora.theory.sources import dataset_prompts, model_shapes

    study = load_study(options.study)
    rows = efficiency_rows(
        study,
        model_shapes(study, options.backbones),
        dataset_prompts(study, options.manifests),
        options.precision,
    )
    write_rows(options.output, COLUMNS, rows)
