"""Stands in for `blocklora`: notes how it was called, and leaves what it was asked for.

Nothing is computed, but the records of fits and tests are those that the workflow looks at, so that
it finds them finished. A call that the command line does not understand fails.
"""

from functools import partial
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from blocklora import cli
from blocklora.commands.options import open_study
from blocklora.commands.publish import FORMS
from blocklora.experiments import items
from blocklora.files import write_json
from blocklora.methods import METHODS
from blocklora.runs.predictions import Predictions, write_predictions
from blocklora.runs.record import RECORD, fit_files
from blocklora.study.digests import fit_digest
from blocklora.study.digests import test_digest as digest_of_test
from blocklora.study.run import Run, Test

CONTENT = b"made by a stand-in"


def main(arguments: list[str]) -> int:
    """Do what a call asks for, and return its exit status."""
    special = {"aggregate": _aggregate, "fit": _fit, "test": _test, "publish": _publish}
    for name, command in cli.commands.commands.items():
        command.callback = partial(_do, special.get(name, _write), arguments)
    return cli.main(arguments)


def _do(make, arguments, **options):
    with Path("calls.txt").open("a") as stream:
        stream.write(f"{' '.join(arguments)}\n")
    make(SimpleNamespace(**options))


def _write(options):
    files = options.output if isinstance(options.output, list) else [options.output]
    for file in [*files, *filter(None, [getattr(options, "page", None)])]:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(CONTENT)


def _aggregate(options):
    options.results.joinpath("runs.csv").write_bytes(CONTENT)


def _fit(options):
    study = open_study(options.study)
    chosen = options.methods or study.fitted_methods
    numbers = options.shots or study.shots, options.seeds or study.seeds
    for values in product([options.backbone], [options.dataset], chosen, *numbers):
        run, how = Run(*values), (options.precision, options.engine)
        folder = options.results / "runs" / run.folder
        named = study.methods[run.method]
        for name in fit_files(study, run):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(CONTENT)
        record = {
            "method": named.values,
            "recipe": {},
            "cost": {"adapter_bytes": len(CONTENT) * len(METHODS[named.kind].files)},
            "provenance": {
                "key": "a key",
                "fit_digest": fit_digest(study, run, *how),
                "code_digest": "a digest",
                "precision": options.precision,
                "engine": options.engine,
            },
        }
        write_json(folder / RECORD, record)
        for test in run.own_tests:
            _write_predictions(study, test, options)


def _test(options):
    study = open_study(options.study)
    cell = options.backbone, options.fitted_on or options.dataset, options.method
    for seed in options.seeds or [0]:
        run = Run(*cell, options.shots or 0, seed)
        _write_predictions(study, Test(run, options.dataset), options)


def _write_predictions(study, test, options):
    digest = digest_of_test(study, test, options.precision, options.engine)
    facts = {"key": "a key", "test_digest": digest}
    one = np.zeros(1)
    write_predictions(options.results / "runs" / test.file, Predictions(one, one, one, facts))


def _publish(options):
    study = open_study(options.study)
    backbones = study.backbones if options.what == "figures" else [""]
    for backbone, item in product(backbones, items(study)):
        if f"{item.kind}s" == options.what:
            for form in FORMS[item.kind]:
                path = options.results / options.what / backbone / f"{item.name}{form}"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(CONTENT)
