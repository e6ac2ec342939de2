"""The claims of the papers, and the verdict of a study on each of them."""

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from inspect import getmembers, isfunction
from math import isclose
from pathlib import Path
from typing import Any

from blocklora.fields import from_values
from blocklora.publish.evidence import Measured, NotTestedError
from blocklora.publish.published_accuracies import REFERENCE, is_paper
from blocklora.publish.quantities import claimed_accuracy, claimed_cost, claimed_theory
from blocklora.publish.results import Results
from blocklora.yamlfiles import read_yaml

SUPPORTED, NOT_SUPPORTED, NOT_TESTED = "supported", "not supported", "not tested here"

COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": isclose,
}
# Every public function of these modules, by the name that claims use.
QUANTITIES: dict[str, Callable[[Results], Measured]] = {
    name: function
    for module in (claimed_accuracy, claimed_cost, claimed_theory)
    for name, function in getmembers(module, isfunction)
    if function.__module__ == module.__name__ and not name.startswith("_")
}


@dataclass(frozen=True)
class Criterion:
    """The criterion of a claim, by which the value of a quantity is compared with a threshold.

    Attributes:
        quantity: The name of a function in `QUANTITIES`.
        comparison: The key in `COMPARISONS` of the comparison that has to be true.
        threshold: The number that the quantity is compared with.
        threshold_source: The reason for this threshold.
        needs: The CSV files of the quantity: "runs", or names of files of the theory step.
        study: "any" if every study can decide the claim, "paper" if only a study of the paper's 11
            datasets with a backbone of the published tables can.
    """

    quantity: str
    comparison: str
    threshold: float
    threshold_source: str
    needs: tuple[str, ...]
    study: str


@dataclass(frozen=True)
class Claim:
    """A statement with its source, and either its criterion or the reason why it has none.

    `reference/claims.yaml` explains the fields.
    """

    id: str
    group: str
    topic: str
    statement: str
    source: str
    confidence: str
    caveat: str | None = None
    test: Criterion | None = None
    untested: str | None = None


@dataclass(frozen=True)
class Verdict:
    """The verdict of a study on a claim, with the number behind it or the reason why it has none.

    `files` are those that the number was computed from.
    """

    claim: Claim
    verdict: str
    measured: Measured | None
    reason: str | None
    files: tuple[Path, ...]


def load_claims(path: Path = REFERENCE / "claims.yaml") -> list[Claim]:
    """Return the claims in a file, in its order."""
    groups = read_yaml(path)
    return [_claim(group["group"], entry) for group in groups for entry in group["claims"]]


def _claim(group: str, entry: dict[str, Any]) -> Claim:
    test = from_values(Criterion, entry["test"]) if "test" in entry else None
    return Claim(**{**entry, "group": group, "test": test})


def judge(claims: Sequence[Claim], results: Results) -> list[Verdict]:
    """Return the verdict on each claim."""
    return [_verdict(claim, results) for claim in claims]


def _verdict(claim: Claim, results: Results) -> Verdict:
    test = claim.test
    if test is None:
        return Verdict(claim, NOT_TESTED, None, claim.untested, ())
    absent = [results.path(name).name for name in test.needs if not results.has(name)]
    try:
        if test.study == "paper" and not is_paper(results.study):
            needed = "the paper's 11 datasets and OpenAI's weights (studies/paper.yaml)"
            raise NotTestedError(f"needs {needed}")
        if absent:
            raise NotTestedError(f"needs {' and '.join(absent)}")
        measured = QUANTITIES[test.quantity](results)
    except NotTestedError as error:
        return Verdict(claim, NOT_TESTED, None, str(error), ())
    holds = COMPARISONS[test.comparison](measured.value, test.threshold)
    files = tuple(results.path(name) for name in test.needs)
    return Verdict(claim, SUPPORTED if holds else NOT_SUPPORTED, measured, None, files)
