"""Subcommands of `blocklora.study`."""

from argparse import Namespace, _SubParsersAction
from pathlib import Path

from blocklora.commands.arguments import add_command, add_options
from blocklora.study.files import find_study
from blocklora.study.model import load_study

STUDY = "name of a study in studies/, or a file"


def add_commands(subparsers: _SubParsersAction) -> None:
    """Add this package's subcommands to the command line."""
    add_command(subparsers, _check_study).add_argument("study", help=STUDY)

    status = add_command(subparsers, _status)
    status.add_argument("--study", required=True, help=STUDY)
    add_options(status, "results", "cache")
    status.add_argument("--json", action="store_true", help="print every run as JSON")

    add_command(subparsers, _schema).add_argument("name", choices=("study", "config"))


def _schema(options: Namespace) -> None:
    """Print the JSON schema of study or configuration files as YAML, for editors."""
    from blocklora.study.schemas import schema_text

    print(schema_text(options.name), end="")


def _check_study(options: Namespace) -> None:
    """Check a study file and print what it contains, or every fault in it."""
    study = load_study(find_study(options.study, "studies"), images_needed=True)
    print(f"{study.path}: {study.title}")
    for key in ("backbones", "datasets", "shots", "seeds", "methods"):
        print(f"  {key}: {', '.join(map(str, getattr(study, key)))}")
    print(f"  runs: {sum(1 for _ in study.runs())}")


def _status(options: Namespace) -> None:
    """Say which runs of a study are done, running, failed or missing.

    Failed runs come with the reason, all with the time spent (h:mm:ss) and the time left if runs
    take as long as finished ones.
    """
    import json

    from blocklora.runs.status import status_text, study_status

    study = load_study(find_study(options.study, "studies"))
    results = options.results or Path("results", study.name)
    status = study_status(study, results, options.cache)
    if options.json:
        print(json.dumps([entry.to_json() for entry in status], indent=2))
    else:
        print(status_text(status))
