"""How fits are shared out to jobs by the time they are expected to take."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from blocklora.performance.durations import START_SECONDS, expected_seconds, fit_units
from blocklora.study.study import load_study

STUDIES = Path(__file__).parents[2] / "studies"
PAPER = load_study(STUDIES / "paper.yaml")
(BACKBONE,) = PAPER.backbones


def names(study, hours, device="cuda"):
    return {key: unit.name for key, unit in fit_units(study, device, hours).items()}


def test_everything_of_a_small_study_is_one_unit():
    study = load_study(STUDIES / "mini.yaml")
    units = names(study, 8, "cpu")
    assert set(units) == {("mini-clip", d, k) for d in study.datasets for k in study.shots}
    assert set(units.values()) == {"dataset"}


def test_a_large_study_is_split_by_shots_and_then_by_run():
    """A dataset with too much for a job is split; what is long beside little is split further."""
    units = {hours: names(PAPER, hours) for hours in (8, 2, 0.5, 0.001)}
    of_imagenet = {h: [u[BACKBONE, "imagenet", k] for k in PAPER.shots] for h, u in units.items()}
    assert of_imagenet == {
        8: ["dataset"] * 5,
        2: ["shots"] * 5,
        0.5: ["shots"] * 3 + ["run"] * 2,
        0.001: ["run"] * 5,
    }
    assert units[2][BACKBONE, "eurosat", 1] == "dataset"
    assert set(names(PAPER, 8, "cpu").values()) == {"run"}


def test_no_job_is_expected_to_take_longer_than_it_should():
    hours, units = 0.5, fit_units(PAPER, "cuda", 0.5)
    for (_, dataset, shots), unit in units.items():
        alike = [units[BACKBONE, dataset, k] for k in PAPER.shots]
        fits = len(PAPER.seeds) * len(PAPER.fitted_methods)
        seconds = {
            "dataset": fits * sum(other.longest_seconds for other in alike),
            "shots": fits * unit.longest_seconds,
            "run": 0,  # cannot be split
        }
        assert seconds[unit.name] <= 3600 * hours * 1.01, (dataset, shots)


def test_the_expected_time_grows_with_shots_classes_and_slowness():
    shape, method = PAPER.backbone_config(BACKBONE), PAPER.methods["block_lora"]

    def expected(classes=10, shots=1, device="cuda", method=method):
        return expected_seconds(shape, method, classes, shots, device)

    assert expected(shots=4) - START_SECONDS == pytest.approx(4 * (expected() - START_SECONDS))
    assert expected(classes=1000) > expected()
    assert expected(device="cpu") > 100 * expected()
    fewer = replace(method.recipe, iterations_per_shot=250)
    half = SimpleNamespace(adapter=method.adapter, recipe=fewer)
    assert expected(method=half) - START_SECONDS == (expected() - START_SECONDS) / 2
