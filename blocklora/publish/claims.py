"""The claims of the papers, and the verdict of a study on each of them."""

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from inspect import getmembers, isfunction
from math import isclose
from pathlib import Path
from typing import Any

import yaml

from blocklora.fields import from_values
from blocklora.publish.evidence import Measured, NotTestedError
from blocklora.publish.published_accuracies import REFERENCE, is_paper
from blocklora.publish.quantities import claimed_accuracy, claimed_cost, claimed_theory
from blocklora.publish.results import Results

SUPPORTED, NOT_SUPPORTED, NOT_TESTED = "supported", "not supported", "not tested here"

COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": isclose,
}
# By the names that claims use: every public function of these modules.
QUANTITIES: dict[str, Callable[[Results], Measured]] = {
    name: function
    for module in (claimed_accuracy, claimed_cost, claimed_theory)
    for name, function in getmembers(module, isfunction)
    if function.__module__ == module.__name__ and not name.startswith("_")
}


@dataclass(frozen=True)
class Criterion:
    """The criterion of a claim, which holds if `quantity` `comparison` `threshold` is true.

    Attributes:
        quantity: The name of a function in `QUANTITIES`.
        comparison: One of `COMPARISONS`.
        threshold: The number that the quantity is compared with.
        threshold_source: The reason for this threshold.
        needs: The inputs of the quantity: "runs" or measures of the theory step.
        study: "any" if every study can decide the claim, "paper" if it takes the paper's datasets
            and one of its backbones.
    """

    quantity: str
    comparison: str
    threshold: float
    threshold_source: str
    needs: tuple[str, ...]
    study: str


@dataclass(frozen=True)
class Claim:
    """A statement with its source, and the criterion of its test or the reason why it has none."""

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
    """The verdict of a study on a claim, with the number behind it or the reason for its lack."""

    claim: Claim
    verdict: str
    measured: Measured | None
    reason: str | None
    files: tuple[Path, ...]


def load_claims(path: Path = REFERENCE / "claims.yaml") -> list[Claim]:
    """Return the claims of `reference/claims.yaml`, in order."""
    groups = yaml.safe_load(path.read_text(encoding="utf-8"))
    return [_claim(group["group"], entry) for group in groups for entry in group["claims"]]


def _claim(group: str, entry: dict[str, Any]) -> Claim:
    test = entry.get("test")
    return Claim(group=group, **entry | {"test": test and from_values(Criterion, test)})


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
