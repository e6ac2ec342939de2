"""Of a run, what is missing or out of date is made, and the rest is left as it is."""

import pytest

from blocklora.cli import main
from blocklora.runs.predictions import read_test_facts
from blocklora.study import digests
from tests.faults.pipeline import FIT_FILES, assert_equal_results, content, find

FOLDER = "results/runs/mini-clip/own/block_lora/2shot"
TESTS = tuple(name for name in FIT_FILES if name.startswith("tests/"))


@pytest.fixture
def fit(study, copied, monkeypatch):
    """Calls `blocklora fit` in this process for two seeds of a finished study."""
    monkeypatch.chdir(copied)
    stage = find(study, "fit", f"{FOLDER}/seed1")
    return lambda: main([*stage.arguments])


def times(folder):
    """Return when each file of the runs was written."""
    return {
        str(path.relative_to(folder)): path.stat().st_mtime_ns
        for path in (folder / FOLDER).rglob("*.*")
    }


def changed(before, after):
    assert before.keys() == after.keys()
    return {name for name in before if before[name] != after[name]}


@pytest.mark.parametrize("names", [TESTS[:1], TESTS[1:], TESTS])
def test_missing_predictions_are_made_again_without_a_fit(fit, finished, copied, names):
    before = times(copied)
    deleted = {f"{FOLDER}/seed2/{name}" for name in names}
    for name in deleted:
        (copied / name).unlink()
    assert fit() == 0
    assert changed(before, times(copied)) == deleted
    assert_equal_results(copied, finished[0])


def test_missing_predictions_can_be_made_by_the_test_alone(study, finished, copied, monkeypatch):
    before = times(copied)
    deleted = f"{FOLDER}/seed2/tests/own/test.safetensors"
    (copied / deleted).unlink()
    monkeypatch.chdir(copied)
    job = find(study, "test").arguments[:-2]
    assert main([*job, "--method", "block_lora", "--shots", "2", "--seeds", "2"]) == 0
    assert changed(before, times(copied)) == {deleted}
    assert_equal_results(copied, finished[0])


def changed_evaluation(monkeypatch):
    monkeypatch.setattr(digests, "evaluation_code", lambda kind: f"changed code of {kind}")


def changed_preprocessing(monkeypatch):
    original = digests.code_digest

    def digest(*entries, **options):
        if digests.PREPROCESSING in entries:
            return "changed preprocessing"
        return original(*entries, **options)

    monkeypatch.setattr(digests, "code_digest", digest)


@pytest.mark.parametrize("change", [changed_evaluation, changed_preprocessing])
def test_a_change_of_the_evaluation_redoes_tests_and_no_fit(
    fit, finished, copied, monkeypatch, change
):
    before = times(copied)
    change(monkeypatch)
    assert fit() == 0
    tests = {f"{FOLDER}/seed{seed}/{name}" for seed in (1, 2) for name in TESTS}
    assert changed(before, times(copied)) == tests
    for name in tests:
        ours, theirs = content(copied / name), content(finished[0] / name)
        for digest in ("test_digest", "key"):
            assert ours.pop(digest) != theirs.pop(digest)
        assert ours == theirs
    # Once they are made, nothing is left to do.
    before = times(copied)
    assert fit() == 0
    assert times(copied) == before


def test_another_fit_is_followed_by_its_tests(fit, copied, monkeypatch):
    before = times(copied)
    facts = read_test_facts(copied / FOLDER / "seed1" / TESTS[0])
    monkeypatch.setattr(digests, "fit_code", lambda kind, engine: "changed code")
    assert fit() == 0
    assert changed(before, times(copied)) == before.keys()
    assert (
        read_test_facts(copied / FOLDER / "seed1" / TESTS[0])["test_digest"]
        != (facts["test_digest"])
    )
