"""The files that tables, figures and claims are made from.

Their paths are relative to the folder of the study's results.
"""

from collections.abc import Iterator

from blocklora.study.run import Test
from blocklora.study.study import Study

# Stands for the predictions of tests among the needs of an item, beside names of CSV files.
PREDICTIONS = "predictions"


def evidence_file(name: str) -> str:
    """Return the path of runs.csv or of a CSV file of the theory step; `name` has no .csv."""
    return "runs.csv" if name == "runs" else f"theory/{name}.csv"


def predictions_file(test: Test) -> str:
    """Return the path of the predictions of a test."""
    return f"runs/{test.file}"


def final_tests(study: Study) -> Iterator[Test]:
    """Yield the test on its own dataset of each run that has the most shots or is not trained."""
    for run in study.runs():
        if run.shots in (0, study.shots[-1]):
            yield Test(run, run.dataset)
