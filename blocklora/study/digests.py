"""The digests that decide whether a result of a study is out of date.

The digest of a result covers its definition in the study, the code that decides it
(`provenance.py`) and the digests of its inputs, so it is known before anything is computed. Of the
configuration, it covers only the precision and the engine. Titles, other datasets and other methods
of the study do not change it.
"""

from dataclasses import asdict
from typing import Any

from blocklora.engine.engines import ENGINES
from blocklora.fields import to_values
from blocklora.files import file_digest, json_digest
from blocklora.methods import METHODS
from blocklora.provenance import code_digest
from blocklora.study.run import Run, Test
from blocklora.study.study import Study, drawn_datasets, registry

PROMPTS = "blocklora.backbones.prompts"
READING = "blocklora.data.images"
PREPROCESSING = "blocklora.data.preprocess"


def images_digest(study: Study, dataset: str) -> str:
    """Return the digest of a dataset's image files."""
    own = study.own_datasets.get(dataset)
    drawn = dataset in drawn_datasets()
    return json_digest(
        {
            "name": dataset,
            "own": own and {"images": own.images, "csv": own.csv or None, "state": own.state},
            "miniature": asdict(study.miniature) if drawn and study.miniature else None,
            "code": code_digest("blocklora.miniature.datasets") if drawn else None,
        }
    )


def listing_rules(dataset: str) -> dict[str, Any] | None:
    """Return the rules for listing the images of a dataset; None for one of the user's own.

    They do not include the places that images and split files are downloaded from.
    """
    entry = registry().get(dataset)
    classes = entry and entry.classes_file
    return entry and {
        "layout": entry.layout,
        "classes": file_digest(entry.registry / classes) if classes else None,
        "split": entry.split_file and entry.split_file.checksum,
    }


def listing_digest(study: Study, dataset: str) -> str:
    """Return the digest of the list of a dataset's images, labels and splits."""
    code = code_digest("blocklora.data.layouts")
    return json_digest([images_digest(study, dataset), listing_rules(dataset), code])


def verification_digest(study: Study, dataset: str) -> str:
    """Return the digest of what a verification depends on, apart from its input files."""
    return json_digest([images_digest(study, dataset), code_digest("blocklora.data.verify")])


def shots_digest(study: Study, dataset: str) -> str:
    """Return the digest of the way that shots lists are drawn, for any shots and seeds."""
    code = code_digest("blocklora.data.sampling")
    return json_digest([listing_digest(study, dataset), code])


def shots_pixels_digest(study: Study, dataset: str) -> str:
    """Return the digest of the way that the images of shots lists are decoded."""
    return json_digest([images_digest(study, dataset), code_digest(READING)])


def test_pixels_digest(study: Study, dataset: str) -> str:
    """Return the digest of the way that test images are decoded and preprocessed."""
    return json_digest([images_digest(study, dataset), code_digest(READING, PREPROCESSING)])


def backbone_digest(study: Study, backbone: str) -> str:
    """Return the digest of the weights of a backbone."""
    source, family = study.backbones[backbone].source, study.backbones[backbone].family
    return json_digest(
        {
            "name": backbone,
            "source": source,
            "definition": family.definition(backbone, study.miniature),
            "code": code_digest(family.code),
        }
    )


def fit_digest(study: Study, run: Run, precision: str, engine: str) -> str:
    """Return the digest of a fit."""
    named = study.methods[run.method]
    method = METHODS[named.kind]
    if not method.trained:
        return json_digest([named.values, backbone_digest(study, run.backbone)])
    return json_digest(
        {
            "shots": [shots_digest(study, run.dataset), run.shots, run.seed],
            "pixels": shots_pixels_digest(study, run.dataset),
            "backbone": backbone_digest(study, run.backbone),
            "method": named.values,
            "recipe": to_values(named.recipe),
            "precision": precision,
            "engine": engine if method.engines else None,
            "code": fit_code(named.kind, engine),
        }
    )


def test_digest(study: Study, test: Test, precision: str, engine: str) -> str:
    """Return the digest of the predictions of a test."""
    run = test.run
    named = study.methods[run.method]
    tested: dict[str, Any] = {"part": test.part}
    if test.part == "test":
        tested["listing"] = listing_digest(study, test.dataset)
        tested["pixels"] = test_pixels_digest(study, test.dataset)
    else:
        tested["preprocessing"] = code_digest(PREPROCESSING)
    return json_digest(
        {
            "fit": fit_digest(study, run, precision, engine),
            "images": tested,
            "prompt": named.recipe.prompt,
            "logit_scale": named.recipe.logit_scale,
            "precision": precision,
            "code": evaluation_code(named.kind),
        }
    )


def results_digest(study: Study, precision: str, engine: str) -> str:
    """Return the digest of all runs of a study, for results that are computed from them.

    It covers the study and the tests of all runs, and so all code behind them.
    """
    tests = [test for run in study.runs() for test in run.own_tests]
    return json_digest([study.digest, [test_digest(study, t, precision, engine) for t in tests]])


def fit_code(kind: str, engine: str) -> str:
    """Return the digest of the code that decides what a method of this kind learns."""
    method = METHODS[kind]
    engines = [ENGINES[engine]] if method.engines else []
    return code_digest(type(method).__module__, PROMPTS, *engines, without="classifier")


def evaluation_code(kind: str) -> str:
    """Return the digest of the code that classifies images with a method of this kind."""
    return code_digest(type(METHODS[kind]).__module__, PROMPTS, without="fit")
