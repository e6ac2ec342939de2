"""The page of the benchmark, its comparisons and its projections."""

import json
from pathlib import Path

import pytest

from blocklora.performance import bench as benchmark
from blocklora.performance import protocol
from blocklora.performance.bench import document, reference_seconds
from blocklora.performance.report import page
from blocklora.study.study import load_study
from tests.performance.stand_ins import FACTS, answers, measurement

ROOT = Path(__file__).parents[2]


def test_a_run_on_imagenet_is_projected_from_steps_and_tests():
    minutes = (8000 * 0.2 + 2 + 50_000 * 0.001) / 60
    content = document([measurement(1000), measurement(999), measurement(1000, 8)], FACTS)
    projected = [one["imagenet_minutes"] for one in content["settings"]]
    assert projected == [pytest.approx(minutes), None, None]
    assert "take 27.5 minutes" in page(content)
    only = content["settings"][0]
    assert only["fast_share_of_product_rate"] == pytest.approx(only["flops_formula"] / 1e13 / 0.2)


def test_the_protocol_is_that_of_the_study_of_the_paper():
    study = load_study(ROOT / "studies/paper.yaml")
    methods = [study.methods[name] for name in study.adapter_methods]
    assert len(methods) == protocol.METHODS
    assert {method.recipe for method in methods} == {protocol.RECIPE}
    assert protocol.ADAPTER in [method.adapter for method in methods]
    assert (tuple(study.shots), len(study.seeds)) == (protocol.SHOTS, protocol.SEEDS)


def test_the_whole_paper_is_projected_from_its_shortest_and_its_longest_steps():
    study = load_study(ROOT / "studies/paper.yaml")
    runs = len(study.datasets) * len(study.seeds) * len(study.adapter_methods)
    steps = runs * sum(study.shots) * 500
    few, many = measurement(10, fast=answers(0.25)), measurement(1000, fast=answers(0.25))
    paper = document([few, many], FACTS)["paper"]
    assert paper == {"fp32": {"steps": steps, "hours": pytest.approx(steps * 0.25 / 3600)}}
    # A step that takes as long as ImageNet's has its number of tokens, and others lie in between.
    slower = measurement(1000, fast=answers(0.5))
    found = document([few, slower], FACTS)
    assert steps * 0.25 / 3600 < found["paper"]["fp32"]["hours"] < steps * 0.5 / 3600
    imagenet = steps / len(study.datasets) * 0.5 / 3600
    assert found["paper"]["fp32"]["hours"] > imagenet
    assert f"the {steps} training steps of the paper" in page(found)
    for others in ([few], [few, measurement(1000, precision="bf16")], [few, measurement(1000, 8)]):
        assert document(others, FACTS)["paper"] == {}


def test_a_reference_that_ran_out_of_memory_is_said_to_have():
    known = [measurement(n, reference=answers(s)) for n, s in ((50, 5.0), (100, 8.0))]
    lost = measurement(1000, reference=None)
    assert reference_seconds(lost, [*known, lost]) == pytest.approx(8 + 3 / 50 * 900)
    assert reference_seconds(lost, [known[0], lost]) is None
    text = page(document([*known, lost], FACTS))
    line = next(line for line in text.splitlines() if "1000 classes" in line)
    assert "~62" in line
    assert "out of memory" in line


@pytest.mark.parametrize("trial", ["fast", "unrecorded", "towers", "vision", "device", "reference"])
def test_a_trial_that_ran_out_of_memory_leaves_a_page_of_the_others(trial):
    others = {name: answers(0.5) for name in ("unrecorded", "towers", "vision", "reference")}
    found = document([measurement(50, **(others | {trial: None}))], FACTS)
    (only,) = found["settings"]
    assert only["ran_out_of_memory"] == [trial]
    assert json.loads(json.dumps(found)) == found
    text = page(found)
    assert ("out of memory" in text) == (trial in ("fast", "unrecorded", "reference"))
    assert ("out of memory" in benchmark.summary(only)) == ("out of memory" in text)


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_does_not_spoil_the_file(loss):
    found = document([measurement(50, fast=answers(0.5, first=loss))], FACTS)
    assert found["settings"][0]["fast"]["first_loss"] is None
    json.dumps(found, allow_nan=False)


def test_settings_may_have_different_parts():
    parts = {"towers": answers(0.15), "vision": answers(0.125)}
    profiled = answers(0.25, kernels=(2000.0, 0.1875), test_seconds=(2.0, 0.001))
    both = measurement(50, fast=profiled, **parts)
    text = page(document([both, measurement(100, fast=profiled)], FACTS))
    first = next(line for line in text.splitlines() if "launch gaps" in line)
    place = [cell.strip() for cell in first.split("|")].index("launch gaps")
    rows = text.splitlines()[text.splitlines().index(first) + 2 :][:2]
    cells = [[cell.strip() for cell in row.split("|")] for row in rows]
    assert [row[place] for row in cells] == ["0.0625", "0.0625"]
    assert [row[2] for row in cells] == ["0.125", ""]
    assert "Launch gaps are" in text


def test_each_trial_loses_the_time_of_its_own_optimizer():
    """Those of the reductions have few parameters, which take less time to update."""
    found = {"fast": answers(10.0, update=4.0), "towers": answers(5.0, update=0.5)}
    found["vision"] = answers(3.0, update=0.25)
    parts = measurement(50, **found)["parts_seconds"]
    assert parts == {
        "vision tower": 2.75,
        "text tower": 1.75,
        "adapter": 1.5,
        "optimizer": 4.0,
        "augmentation": 0.5,
    }
