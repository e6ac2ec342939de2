"""SIGKILL at random moments of every stage: nothing half-done is taken for done."""

import random

import pytest

from tests.faults.pipeline import assert_equal_results, content, make_backbone, stages, undo


def kill_and_complete(runner, study, finished, folder, kills_per_stage, seed):
    """Go through the study, killing each stage so often before it may end; return the kills."""
    reference, seconds = finished
    generator = random.Random(seed)
    make_backbone(folder)
    kills = 0
    for stage, duration in zip(stages(study), seconds, strict=True):
        wanted = kills_per_stage
        while wanted > 0:
            outcome = runner(folder, stage.arguments, generator.uniform(0, duration))
            assert outcome.status in (0, -9), f"{stage.name} after a kill: {outcome.text}"
            for output in stage.outputs:
                if (folder / output).exists():
                    assert content(folder / output) == content(reference / output), output
            if outcome.status == 0:
                undo(folder, stage)
            wanted -= outcome.status == -9
            kills += outcome.status == -9
        outcome = runner(folder, stage.arguments)
        assert outcome.status == 0, f"{stage.name} after kills: {outcome.text}"
    return kills


def test_a_kill_in_every_stage_changes_no_result(runner, study, finished, tmp_path):
    kills = kill_and_complete(runner, study, finished, tmp_path, 1, seed=1)
    assert kills == len(stages(study))
    assert_equal_results(tmp_path, finished[0])


@pytest.mark.faults
@pytest.mark.parametrize("seed", [2, 3])
def test_a_hundred_kills_change_no_result(runner, study, finished, tmp_path, seed):
    assert kill_and_complete(runner, study, finished, tmp_path, 7, seed) >= 100
    assert_equal_results(tmp_path, finished[0])
