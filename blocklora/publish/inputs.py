"""The files that tables, figures and claims are made from, as paths below the study's folder."""

from collections.abc import Iterator

from blocklora.study.run import Test
from blocklora.study.study import Study

PREDICTIONS = "predictions"


def evidence_file(name: str) -> str:
    """Return the path of the CSV file of "runs" or of a measure of the theory step."""
    return "runs.csv" if name == "runs" else f"theory/{name}.csv"


def predictions_file(test: Test) -> str:
    """Return the path of the predictions of a test."""
    return f"runs/{test.file}"


def final_tests(study: Study) -> Iterator[Test]:
    """Yield the test of each run with the most shots, and of each run that is not trained."""
    for run in study.runs():
        if run.shots in (0, study.shots[-1]):
            yield Test(run, run.dataset)
