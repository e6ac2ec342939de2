"""Verdicts as files: JSON, CSV, Markdown and HTML."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from inspect import getdoc
from pathlib import Path
from typing import Any

import pandas as pd

from blocklora.errors import UserError
from blocklora.files import write_json
from blocklora.publish import formats
from blocklora.publish.claims import NOT_SUPPORTED, NOT_TESTED, QUANTITIES, SUPPORTED, Verdict
from blocklora.publish.render import Section, Table, cells, write_table
from blocklora.publish.results import caption_of
from blocklora.study.model import Study

SCHEMA = 1
SIGNS = {"<=": "≤", ">=": "≥", "==": "="}
SUFFIXES = (".json", ".csv", ".md", ".html")


def write_verdicts(study: Study, verdicts: Sequence[Verdict], outputs: Sequence[Path]) -> None:
    """Write the verdicts to each path, in the form its suffix names.

    Raises:
        UserError: a suffix is not .json, .csv, .md or .html.
    """
    for path in outputs:
        if path.suffix not in SUFFIXES:
            raise UserError(f"{path}: claims are written as {', '.join(SUFFIXES)}")
    for path in outputs:
        if path.suffix == ".json":
            write_json(path, _document(study, verdicts))
    write_table(claims_table(study, verdicts), [p for p in outputs if p.suffix != ".json"])


def claims_table(study: Study, verdicts: Sequence[Verdict]) -> Table:
    """Return the page of claims: statement, verdict, number, test and source of each."""
    counts = Counter(verdict.verdict for verdict in verdicts)
    numbers = ", ".join(f"{counts[word]} {word}" for word in (SUPPORTED, NOT_SUPPORTED, NOT_TESTED))
    groups = dict.fromkeys(verdict.claim.group for verdict in verdicts)
    sections = [
        Section(group, [_row(verdict) for verdict in verdicts if verdict.claim.group == group])
        for group in groups
    ]
    caption = caption_of(
        study, f"What is claimed, and whether it holds: {len(verdicts)} claims, {numbers}."
    )
    return Table(
        name="claims",
        caption=caption,
        columns=["claim", "statement", "verdict", "measured here", "supported if", "source"],
        sections=sections,
        data=_summary(verdicts),
        notes=[
            "Primary: read in the paper itself or confirmed by its authors. Secondary: read in "
            "somebody else's summary. Derived: follows from the others. Ours: a question of this "
            "reproduction. Published numbers of Block-LoRA itself are not known to us."
        ],
        text_columns=6,
    )


def _row(verdict: Verdict) -> list[Any]:
    claim = verdict.claim
    statement = claim.statement + (f" ({claim.caveat})" if claim.caveat else "")
    files = ", ".join(path.name for path in verdict.files)
    found = f"{verdict.measured.text} [{files}]" if verdict.measured else verdict.reason
    return cells(
        claim.id,
        statement,
        verdict.verdict,
        found,
        _condition(verdict),
        f"{claim.source} ({claim.confidence})",
    )


def _condition(verdict: Verdict) -> str:
    test = verdict.claim.test
    if test is None:
        return formats.DASH
    quantity = getdoc(QUANTITIES[test.quantity]).splitlines()[0].rstrip(".")
    sign = SIGNS.get(test.comparison, test.comparison)
    threshold = f"{test.threshold:,g}".replace("-", formats.MINUS)
    return f"{quantity}: {sign} {threshold} ({test.threshold_source})"


def _summary(verdicts: Sequence[Verdict]) -> pd.DataFrame:
    """Return the short form, one row per claim."""
    return pd.DataFrame(
        {
            "claim": verdict.claim.id,
            "statement": verdict.claim.statement,
            "verdict": verdict.verdict,
            "measured": verdict.measured.text if verdict.measured else verdict.reason,
            "source": f"{verdict.claim.source} ({verdict.claim.confidence})",
        }
        for verdict in verdicts
    )


def _document(study: Study, verdicts: Sequence[Verdict]) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "study": study.name,
        "title": study.title,
        "miniature": study.miniature is not None,
        "counts": Counter(verdict.verdict for verdict in verdicts),
        "claims": [
            {
                **json.loads(json.dumps(asdict(verdict.claim))),
                "verdict": verdict.verdict,
                "reason": verdict.reason,
                "measured": verdict.measured and asdict(verdict.measured),
                "files": [str(path) for path in verdict.files],
            }
            for verdict in verdicts
        ],
    }
