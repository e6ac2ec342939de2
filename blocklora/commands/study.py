"""Subcommands of `blocklora.study`."""

from argparse import Namespace, _SubParsersAction
from pathlib import Path

from blocklora.commands.arguments import add_results


def add_commands(subparsers: _SubParsersAction) -> None:
    """Add this package's subcommands to the command line."""
    parser = subparsers.add_parser(
        "check-study",
        help="check a study file and say what it contains",
        description="Check a study file: print what it contains, or every fault in it.",
    )
    parser.add_argument("study", help="name of a study in studies/, or a file")
    parser.set_defaults(run=_check_study)

    status = subparsers.add_parser(
        "status",
        help="say which runs of a study are done, running, failed or missing",
        description="Say which runs of a study are done, running, failed (and why) or missing, "
        "with the time spent (h:mm:ss) and the time left if runs take as long as finished ones.",
    )
    status.add_argument("--study", required=True, help="name of a study in studies/, or a file")
    add_results(status)
    status.add_argument("--json", action="store_true", help="print every run as JSON")
    status.set_defaults(run=_status)

    schema = subparsers.add_parser(
        "schema",
        help="print the schema of study or configuration files",
        description="Print the JSON schema of study or configuration files as YAML, for editors.",
    )
    schema.add_argument("name", choices=("study", "config"))
    schema.set_defaults(run=_schema)


def _schema(options: Namespace) -> None:
    from blocklora.study.schema import schema_text

    print(schema_text(options.name), end="")


def _check_study(options: Namespace) -> None:
    from blocklora.study.config import find_study
    from blocklora.study.model import load_study

    study = load_study(find_study(options.study, "studies"))
    print(f"{study.path}: {study.title}")
    for key in ("backbones", "datasets", "shots", "seeds", "methods"):
        print(f"  {key}: {', '.join(map(str, getattr(study, key)))}")
    print(f"  runs: {sum(1 for _ in study.runs())}")


def _status(options: Namespace) -> None:
    import json

    from blocklora.runs.status import status_text, study_status
    from blocklora.study.config import find_study
    from blocklora.study.model import load_study

    study = load_study(find_study(options.study, "studies"))
    status = study_status(study, options.results or Path("results", study.name))
    if options.json:
        print(json.dumps([entry.to_json() for entry in status], indent=2))
    else:
        print(status_text(status))
