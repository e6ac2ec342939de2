"""The verdicts on all claims, written as JSON, CSV, Markdown and HTML."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from inspect import getdoc
from pathlib import Path
from typing import Any

import pandas as pd

from blocklora.files import write_json
from blocklora.publish import formats
from blocklora.publish.claims import (
    NOT_SUPPORTED,
    NOT_TESTED,
    QUANTITIES,
    SUPPORTED,
    Criterion,
    Verdict,
)
from blocklora.publish.description import Description
from blocklora.publish.render import Table, write_form, write_forms
from blocklora.study.study import Study

SCHEMA = 1
SIGNS = {"<=": "≤", ">=": "≥", "==": "="}


def _condition(test: Criterion | None) -> str:
    if test is None:
        return formats.DASH
    quantity = getdoc(QUANTITIES[test.quantity]).splitlines()[0].rstrip(".")
    sign = SIGNS.get(test.comparison, test.comparison)
    threshold = f"{test.threshold:,g}".replace("-", formats.MINUS)
    return f"{quantity}: {sign} {threshold} ({test.threshold_source})"


def _with_caveat(statement: str, caveat: str | None) -> str:
    return f"{statement} ({caveat})" if caveat else statement


def _with_files(text: str, files: str) -> str:
    return f"{text} [{files}]" if files else text


CLAIMS = Description(
    name="claims",
    caption="What is claimed, and whether it holds: {total} claims, {counts}.",
    columns=[
        ("claim", "claim", str),
        (
            "statement",
            "statement caveat",
            _with_caveat,
        ),
        ("verdict", "verdict", str),
        ("measured here", "measured files", _with_files),
        ("supported if", "test", _condition),
        ("source", "source", str),
    ],
    notes=[
        "Primary: read in the paper itself or confirmed by its authors. Secondary: read in "
        "somebody else's summary. Derived: follows from the others. Ours: a question of this "
        "reproduction. Published numbers of Block-LoRA itself are not known to us."
    ],
    text_columns=6,
)


def write_verdicts(study: Study, verdicts: Sequence[Verdict], outputs: Sequence[Path]) -> None:
    """Write the verdicts to each path, in the form that its suffix names.

    Raises:
        UserError: A suffix is not .json, .csv, .md or .html, or a file cannot be written.
    """

    def as_table(path: Path) -> None:
        write_form(claims_table(study, verdicts), path)

    writers = {".json": lambda path: write_json(path, _document(study, verdicts))}
    write_forms("claims", outputs, writers | dict.fromkeys((".csv", ".md", ".html"), as_table))


def claims_table(study: Study, verdicts: Sequence[Verdict]) -> Table:
    """Return the table of claims, with a section for each group.

    Its CSV form leaves out the caveats, the files and the criteria.
    """
    frame = pd.DataFrame(
        {
            "group": verdict.claim.group,
            "claim": verdict.claim.id,
            "statement": verdict.claim.statement,
            "caveat": verdict.claim.caveat,
            "verdict": verdict.verdict,
            "measured": verdict.measured.text if verdict.measured else verdict.reason,
            "files": ", ".join(path.name for path in verdict.files),
            "test": verdict.claim.test,
            "source": f"{verdict.claim.source} ({verdict.claim.confidence})",
        }
        for verdict in verdicts
    )
    counted = Counter(frame["verdict"])
    counts = ", ".join(f"{counted[word]} {word}" for word in (SUPPORTED, NOT_SUPPORTED, NOT_TESTED))
    caption = CLAIMS.caption.format(total=len(verdicts), counts=counts)
    columns = ["claim", "statement", "verdict", "measured", "source"]
    return replace(CLAIMS, caption=caption).table(study, frame[columns], by=["group"], shown=frame)


def _document(study: Study, verdicts: Sequence[Verdict]) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "study": study.name,
        "title": study.title,
        "miniature": study.miniature is not None,
        "counts": Counter(verdict.verdict for verdict in verdicts),
        "claims": [
            {
                **asdict(verdict.claim),
                "verdict": verdict.verdict,
                "reason": verdict.reason,
                "measured": verdict.measured and asdict(verdict.measured),
                "files": [str(path) for path in verdict.files],
            }
            for verdict in verdicts
        ],
    }
