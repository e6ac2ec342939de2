"""Commands about study files, and about the state of a study."""

from typing import Annotated, Literal

import typer

from blocklora.commands import options


def check_study(study: options.Study) -> None:
    """Check a study and print it as a whole.

    Every fault is listed with its place and with what is allowed there. A study that extends
    another one is printed with everything that it takes from it.

    Examples:
        blocklora check-study --study mini
        blocklora check-study --study ablation > my-study.yaml
    """
    from blocklora.yamlfiles import yaml_text

    found = options.open_study(study, images_needed=True)
    runs = list(found.runs())
    fitted = sum(run.shots > 0 for run in runs)
    print(f"# {found.path}: {len(runs)} runs, of which {fitted} are fitted")
    print(yaml_text(found.document, flow_style=None), end="")


def status(
    study: options.Study,
    results: options.Results = None,
    cache: options.CacheRoot = options.CACHE,
    json: bool = False,
) -> None:
    """Show which runs are done, running, failed or missing.

    Failed runs are listed with the reason. For all runs the time spent is shown (h:mm:ss), and the
    time that is left if they take as long as the finished ones.

    Args:
        json: Print every run as JSON.

    Examples:
        blocklora status --study mini
    """
    from json import dumps

    from blocklora.runs.status import status_text, study_status

    chosen = options.open_study(study)
    found = study_status(chosen, options.results_of(chosen, results), cache)
    print(dumps([run.to_json() for run in found], indent=2) if json else status_text(found))


def schema(name: Annotated[Literal["study", "config"], typer.Argument()]) -> None:
    """Print the JSON schema of study files or of config.yaml.

    It is printed as YAML. Editors check these files with it while they are written.

    Args:
        name: The files that the schema describes.

    Examples:
        blocklora schema study > study.schema.yaml
    """
    from blocklora.study.schemas import schema_text

    print(schema_text(name), end="")
