"""What every artefact of a study depends on, as digests that are known before anything is made.

A digest is that of the artefact's definition, of the code that decides it (`provenance.py`) and of
the digests of its inputs. How a thing is computed is no part of it beyond precision and engine, nor
are titles, other datasets or other methods.
"""

from dataclasses import asdict
from typing import Any

from blocklora.engine.engines import ENGINES
from blocklora.fields import to_values
from blocklora.files import file_digest, json_digest
from blocklora.methods import METHODS
from blocklora.provenance import code_digest
from blocklora.study.model import Study, drawn_datasets, registry
from blocklora.study.run import Run, Test

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
    """Return how the registry lists the images of `dataset`; None for one of the user's.

    Where images and split files come from is not part of it.
    """
    entry = registry().get(dataset)
    return entry and {
        "layout": entry.layout,
        "classes": entry.classes_file and file_digest(entry.registry / entry.classes_file),
        "split": entry.split_file and entry.split_file.checksum,
    }


def listing_digest(study: Study, dataset: str) -> str:
    """Return the digest of the list of a dataset's images, labels and splits."""
    code = code_digest("blocklora.data.layouts")
    return json_digest([images_digest(study, dataset), listing_rules(dataset), code])


def verification_digest(study: Study, dataset: str) -> str:
    """Return the digest of what a verification depends on beside the source and the list."""
    return json_digest([images_digest(study, dataset), code_digest("blocklora.data.verify")])


def shots_digest(study: Study, dataset: str) -> str:
    """Return the digest of how shots lists are drawn, whatever their shots and seeds."""
    code = code_digest("blocklora.data.sampling")
    return json_digest([listing_digest(study, dataset), code])


def shots_pixels_digest(study: Study, dataset: str) -> str:
    """Return the digest of how the images of shots lists are decoded."""
    return json_digest([images_digest(study, dataset), code_digest(READING)])


def test_pixels_digest(study: Study, dataset: str) -> str:
    """Return the digest of how test images are decoded and preprocessed."""
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
    """Return the digest of what a run learns."""
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
    """Return the digest of all that is computed from the runs of a study, whatever computes it.

    It is that of the study and of the tests of all its runs, and so of all code behind them.
    """
    tests = [test for run in study.runs() for test in run.own_tests]
    return json_digest([study.digest, [test_digest(study, t, precision, engine) for t in tests]])


def fit_code(kind: str, engine: str) -> str:
    """Return the digest of the code that decides what a method of this kind learns."""
    method = METHODS[kind]
    engines = [ENGINES[engine]] if method.engines else []
    return code_digest(type(method).__module__, PROMPTS, *engines, without="classifier")


def evaluation_code(kind: str) -> str:
    """Return the digest of the code by which a fitted method of this kind classifies."""
    return code_digest(type(METHODS[kind]).__module__, PROMPTS, without="fit")
