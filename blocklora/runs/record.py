"""The files of a fit that every method leaves, and its record, `fit.json`."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from blocklora.fields import to_values
from blocklora.methods.base import Compute
from blocklora.provenance import package_versions
from blocklora.study.digests import fit_code, fit_digest
from blocklora.study.model import Run, Study

RECORD = "fit.json"
HISTORY = "history.csv"
SCHEMA = 2


def fit_record(
    study: Study,
    run: Run,
    compute: Compute,
    started: datetime,
    images: Mapping[str, int],
    cost: Mapping[str, Any],
    circumstances: Mapping[str, str],
) -> dict[str, Any]:
    """Return the content of `fit.json` (docs/architecture.md).

    Args:
        study: the study.
        run: the run that was fitted.
        compute: device, precision, engine and threads of the fit.
        started: the time at which the fit began.
        images: numbers of training images and classes.
        cost: the time, memory and energy of the fit.
        circumstances: the digests of the files it was made from, and the name of the device.
    """
    named = study.methods[run.method]
    return {
        "schema": SCHEMA,
        "run": {"study": study.name, **vars(run)},
        "method": named.values,
        "recipe": to_values(named.recipe),
        "images": dict(images),
        "cost": dict(cost),
        "provenance": {
            "study_digest": study.digest,
            "fit_digest": fit_digest(study, run, compute.precision, compute.engine),
            "code_digest": fit_code(named.kind, compute.engine),
            "precision": compute.precision,
            "engine": compute.engine,
            "versions": package_versions(),
            **circumstances,
            "device": compute.device,
            "started": started.isoformat(timespec="seconds"),
        },
    }
