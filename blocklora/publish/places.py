"""Where the files are that tables, figures and claims are made from, below the study's folder."""

from collections.abc import Iterator

from blocklora.study.model import Study
from blocklora.study.run import Test

PREDICTIONS = "predictions"


def evidence_file(name: str) -> str:
    """Return the place of an evidence: "runs", or the name of a measure of the theory step."""
    return "runs.csv" if name == "runs" else f"theory/{name}.csv"


def predictions_file(test: Test) -> str:
    """Return the place of the predictions of a test."""
    return f"runs/{test.file}"


def final_tests(study: Study) -> Iterator[Test]:
    """Yield the test of each run of the largest shot count, and of each run without training."""
    for run in study.runs():
        if run.shots in (0, study.shots[-1]):
            yield Test(run, run.dataset)
