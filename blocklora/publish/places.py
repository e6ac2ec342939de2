"""Where the files are that tables, figures and claims are made from, below the study's folder."""

PREDICTIONS = "predictions"


def evidence_file(name: str) -> str:
    """Return the place of an evidence: "runs", or the name of a measure of the theory step."""
    return "runs.csv" if name == "runs" else f"theory/{name}.csv"


def predictions_file(file: str) -> str:
    """Return the place of the predictions of a test, given its `Test.file`."""
    return f"runs/{file}"
