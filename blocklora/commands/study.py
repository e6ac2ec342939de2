"""Commands about study files, and about the state of a study."""

from typing import Annotated, Literal

from typer import Argument

from blocklora.commands.options import CACHE, CacheRoot, Results, Study, open_study, results_of


def check_study(study: Study) -> None:
    """Check a study and print it as a whole.

    Every fault is listed with its place and the values that are allowed there. A study that extends
    another one is printed with everything that it inherits.

    Example: blocklora check-study --study mini
    Example: blocklora check-study --study studies/ablation.yaml
    """
    from blocklora.yamlfiles import yaml_text

    found = open_study(study, images_needed=True)
    runs = list(found.runs())
    fitted = sum(run.shots > 0 for run in runs)
    print(f"# {found.path}: {len(runs)} runs, of which {fitted} are fitted")
    print(yaml_text(found.document, flow_style=None), end="")


def status(
    study: Study, results: Results = None, cache: CacheRoot = CACHE, json: bool = False
) -> None:
    """Count the runs that are done, running, failed or missing.

    Runs in progress are listed with their processes, and failed runs with the reasons. Times spent
    and left are shown as h:mm:ss. The time left assumes that runs take as long as finished ones.

    Args:
        json: Print every run as JSON.

    Example: blocklora status --study mini
    """
    from json import dumps

    from blocklora.runs.status import status_text, study_status

    chosen = open_study(study)
    found = study_status(chosen, results_of(chosen, results), cache)
    print(dumps([run.to_json() for run in found], indent=2) if json else status_text(found))


def schema(
    name: Annotated[Literal["study", "config"], Argument(help="Kind of file that it describes.")],
) -> None:
    """Print the schema of study files or of config.yaml.

    It is a JSON schema, written in YAML, with which editors check a file while you write it.

    Example: blocklora schema study
    """
    from blocklora.study.schemas import schema_text

    print(schema_text(name), end="")
