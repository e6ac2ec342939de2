"""Subcommands of `blocklora.study`."""

from argparse import Namespace, _SubParsersAction
from pathlib import Path


def add_commands(subparsers: _SubParsersAction) -> None:
    """Add this package's subcommands to the command line."""
    parser = subparsers.add_parser(
        "check-study",
        help="check a study file and say what it contains",
        description="Check a study file: print what it contains, or every fault in it.",
    )
    parser.add_argument("study", type=Path, metavar="FILE", help="study file (YAML)")
    parser.set_defaults(run=_check_study)


def _check_study(options: Namespace) -> None:
    from blocklora.study.model import load_study

    study = load_study(options.study)
    print(f"{study.path}: {study.title}")
    for key in ("backbones", "datasets", "shots", "seeds", "methods"):
        print(f"  {key}: {', '.join(map(str, getattr(study, key)))}")
    print(f"  runs: {sum(1 for _ in study.runs())}")
