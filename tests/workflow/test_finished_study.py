"""The job graph of a finished study: what a change makes be done again.

`blocklora` is replaced by a stand-in that writes the files it is asked for, so that Snakemake has
its records of a finished study.
"""

import os
import re
import shutil
from collections import Counter

import pytest
import yaml

from tests.workflow.small_study import RUNS, STUDY, computations


@pytest.fixture(scope="module")
def finished(prepare, tmp_path_factory):
    """A finished study, never to be changed."""
    folder = tmp_path_factory.mktemp("finished") / "workflow"
    snakemake = prepare(folder)
    (folder / "small.yaml").write_text(STUDY)
    snakemake.configure(study="small.yaml")
    output = snakemake()
    assert snakemake.status == 0, output
    snakemake.said_first = output
    return snakemake


@pytest.fixture
def edit(finished, tmp_path):
    """Return the jobs of the finished study after a change of the study file."""

    def jobs_after(change, **configuration):
        changed = finished.copy(tmp_path / "workflow")
        study = yaml.safe_load(STUDY)
        change(study)
        (changed.folder / "small.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
        changed.configure(**configuration)
        return changed.jobs()

    return jobs_after


def test_a_finished_study_has_no_jobs(finished):
    assert finished.jobs() == {}


def test_every_rule_calls_its_command(finished):
    """The stand-in refuses what the command line does not understand."""
    counts = Counter(line.split()[0] for line in finished.calls.read_text().splitlines())
    for command in ("fit", "test", "gate", "shots"):
        assert counts[command] == 2, command
    assert counts["decode-images"] == 4
    assert counts["publish"] == 2


def test_a_finished_study_says_so_in_the_end_and_gives_no_reasons(finished):
    output = finished.said_first
    assert "Complete: results/small/claims.md, results/small/tables" in output
    assert "Fitting 4 of 4 runs on dtd, or taking them from the cache, see results/" in output
    assert "Reason" not in output
    assert "Select jobs" not in output


def test_all_runs_of_a_dataset_are_fitted_by_one_job(finished):
    (call,) = re.findall(r"^fit .*--dataset dtd.*$", finished.calls.read_text(), re.M)
    assert not {"--methods", "--shots", "--seeds"} & set(call.split())
    assert "--results results/small --cache cache --device cpu" in call


def test_more_seeds_fit_the_new_ones_alone(edit):
    jobs = edit(lambda study: study.update(seeds=[1, 2, 3]))
    assert computations(jobs) == {"fit_dataset": 2}
    assert jobs["shots"] == jobs["decode_shots"] == 2


def drop_seed(study):
    study["seeds"] = [1]


def drop_method(study):
    del study["methods"]["clip_lora"]


def reorder_datasets(study):
    study["datasets"].reverse()


def change_title(study):
    study["title"] = "Another title"


@pytest.mark.parametrize("change", [drop_seed, drop_method, reorder_datasets, change_title])
def test_changes_that_make_no_run_list_no_fit_no_test_and_no_data(edit, change):
    jobs = edit(change)
    assert computations(jobs) == {}
    assert jobs["tables"] == jobs["figures"] == jobs["claims"] == 1
    data = {"fetch_dataset", "make_manifest", "verify_data", "decode_test", "gate"}
    assert not data & jobs.keys()
    assert ("spectra" in jobs) == (change is not change_title)


def test_another_way_to_share_out_the_fits_lists_nothing(edit):
    assert edit(lambda study: None, job_hours=0.01) == {}


def test_another_dataset_is_fitted_and_tested_alone(edit):
    jobs = edit(lambda study: study["datasets"].append("ucf101"))
    assert computations(jobs) == {"test_untrained": 1, "fit_dataset": 1}
    assert jobs["fetch_dataset"] == jobs["make_manifest"] == jobs["decode_test"] == 1


def test_more_shots_fit_the_new_ones_alone(edit):
    jobs = edit(lambda study: study.update(shots=[1, 2]))
    assert computations(jobs) == {"fit_dataset": 2}
    assert jobs["shots"] == 2


def test_a_changed_adapter_is_told_in_words_and_fits_its_method_alone(finished, tmp_path):
    changed = finished.copy(tmp_path / "workflow")
    study = changed.folder / "small.yaml"
    before, after = STUDY.split("  block_lora:")
    study.write_text(f"{before}  block_lora:{after.replace('dropout: 0.25', 'dropout: 0.5')}")
    output = changed("--dry-run")
    assert (
        "Study small: 6 of 10 runs are finished.\n  4 of block_lora: dropout is 0.5, was 0.25"
        in (output)
    )
    jobs = changed.jobs()
    assert computations(jobs) == {"fit_dataset": 2}
    assert "shots" not in jobs


def test_a_methods_own_recipe_fits_that_method_alone(edit):
    def change(study):
        study["methods"]["block_lora"]["recipe"] = {"learning_rate": 0.001}

    jobs = edit(change)
    assert computations(jobs) == {"fit_dataset": 2}
    assert not {"shots", "decode_test", "gate"} & jobs.keys()


def test_a_changed_recipe_fits_everything_and_leaves_zero_shot_and_data(edit):
    jobs = edit(lambda study: study["recipe"].update(learning_rate=0.001))
    assert computations(jobs) == {"fit_dataset": 2}
    assert not {"fetch_dataset", "make_manifest", "shots", "decode_test", "gate"} & jobs.keys()


def test_changes_of_how_to_compute_redo_no_job(edit):
    assert (
        edit(
            lambda study: None,
            offline=True,
            weights_root="elsewhere",
            cache="elsewhere",
            scratch="$TMPDIR",
            data_root="there",
            device="cuda",
            precision="fp32",  # which auto is on the CPU
            gate="warn",
        )
        == {}
    )


@pytest.mark.parametrize("configuration", [{"precision": "bf16"}, {"device": "cuda"}])
def test_precision_is_part_of_a_result(edit, configuration):
    """The device alone changes it here, because it is auto."""
    jobs = edit(lambda study: None, **configuration)
    assert computations(jobs) == {"test_untrained": 2, "fit_dataset": 2}
    assert "decode_test" not in jobs


@pytest.mark.parametrize("jump", [-1, 1])
def test_a_clock_that_jumped_makes_nothing_be_done_again(finished, tmp_path, jump):
    changed = finished.copy(tmp_path / "workflow")
    year = jump * 365 * 86400
    for path in (changed.folder / "results/small/runs").rglob("*.*"):
        os.utime(path, (path.stat().st_atime, path.stat().st_mtime + year))
    assert changed.jobs() == {}


def test_one_deleted_adapter_is_the_only_one_fitted(finished, tmp_path):
    changed = finished.copy(tmp_path / "workflow")
    (changed.folder / RUNS / "dtd/clip_lora/1shot/seed2/adapter.safetensors").unlink()
    assert computations(changed.jobs()) == {"fit_dataset": 1}


@pytest.mark.parametrize("part", ["test", "train"])
def test_a_missing_file_of_predictions_makes_its_job_alone_be_done(finished, tmp_path, part):
    changed = finished.copy(tmp_path / "workflow")
    folder = "dtd/clip_lora/1shot/seed2"
    (changed.folder / RUNS / folder / f"tests/dtd/{part}.safetensors").unlink()
    adapter = changed.folder / RUNS / folder / "adapter.safetensors"
    adapter.write_text("left by the fit")
    changed.calls.unlink()
    output = changed("runs")
    assert changed.status == 0, output
    (call,) = changed.calls.read_text().splitlines()
    assert call.startswith("fit ")
    assert "--dataset dtd" in call


def test_a_job_that_fails_leaves_the_fits_that_were_there(finished, tmp_path):
    changed = finished.copy(tmp_path / "workflow")
    folder = changed.folder / RUNS / "dtd/clip_lora/1shot/seed2"
    (folder / "tests/dtd/test.safetensors").unlink()
    program = changed.folder / "bin/blocklora"
    stand_in = program.read_text()
    program.write_text("#!/bin/bash\nexit 1\n")
    changed("runs")
    assert changed.status == 1
    assert sorted(path.name for path in folder.iterdir()) == [
        "adapter.safetensors",
        "fit.json",
        "history.csv",
        "tests",
    ]
    program.write_text(stand_in)
    assert computations(changed.jobs("runs")) == {"fit_dataset": 1}


def test_missing_predictions_of_zero_shot_ask_for_the_gate_and_for_no_fit(finished, tmp_path):
    changed = finished.copy(tmp_path / "workflow")
    (changed.folder / RUNS / "dtd/zero_shot/0shot/seed0/tests/dtd/test.safetensors").unlink()
    assert changed.jobs("runs") == {"test_untrained": 1, "runs": 1}


def test_a_forced_study_is_done_as_a_whole(finished):
    assert computations(finished.jobs("--forceall")) == {"test_untrained": 2, "fit_dataset": 2}
    assert finished.jobs("--forcerun", "fit_dataset", "runs")["fit_dataset"] == 2


CARRIED = ("runs", "theory")


def test_a_study_that_was_carried_elsewhere_is_published_without_data(finished, prepare, tmp_path):
    """Neither times of files nor the memory of Snakemake are carried."""
    snakemake = prepare(tmp_path / "workflow")
    shutil.copy(finished.folder / "small.yaml", snakemake.folder)
    snakemake.configure(study="small.yaml")
    for name in CARRIED:
        shutil.copytree(
            finished.folder / "results/small" / name, snakemake.folder / "results/small" / name
        )
    for number, path in enumerate(sorted((snakemake.folder / "results").rglob("*.*"))):
        os.utime(path, (0, 10**9 + number * 7919 % 1000))
    published = {"aggregate": 1, "tables": 1, "figures": 1, "claims": 1}
    assert snakemake.jobs() == published
    output = snakemake()
    assert snakemake.status == 0, output
    commands = [line.split()[0] for line in snakemake.calls.read_text().splitlines()]
    assert sorted(commands) == ["aggregate", "claims", "publish", "publish"]
    assert snakemake.jobs() == {}


def test_a_fitted_method_is_tested_on_another_dataset_on_demand(finished, tmp_path):
    target = f"{RUNS}/dtd/block_lora/1shot/seed2/tests/eurosat/test.safetensors"
    assert finished.jobs(target) == {"test_elsewhere": 1}
    changed = finished.copy(tmp_path / "workflow")
    changed.calls.unlink()
    output = changed(target)
    assert changed.status == 0, output
    (call,) = changed.calls.read_text().splitlines()
    assert call.startswith("test ")
    assert "--dataset eurosat --fitted-on dtd --method block_lora --shots 1 --seeds 2" in call
    assert changed.jobs() == {}


@pytest.mark.parametrize(
    ("target", "rule"),
    [
        ("dtd/block_lora/1shot/seed2/tests/dtd/test.safetensors", "fit_run_adapter"),
        ("dtd/zero_shot/0shot/seed0/tests/dtd/test.safetensors", "test_untrained"),
    ],
)
def test_the_test_on_the_runs_own_dataset_is_never_one_on_another(finished, target, rule):
    jobs = finished.jobs(f"{RUNS}/{target}", "--forceall")
    assert rule in jobs
    assert "test_elsewhere" not in jobs


def test_the_whole_study_asks_for_no_test_on_another_dataset(finished):
    jobs = finished.jobs("--forceall")
    assert computations(jobs) == {"test_untrained": 2, "fit_dataset": 2}


@pytest.mark.parametrize(
    ("target", "has", "lacks"),
    [
        ("fetch", {"fetch_dataset", "fetch_backbone"}, {"make_manifest", "test_untrained"}),
        ("data", {"verify_data", "shots"}, {"decode_test", "fetch_backbone"}),
        ("runs", {"test_untrained", "fit_dataset"}, {"aggregate", "claims"}),
        ("tables", {"tables"}, {"figures", "claims"}),
        ("figures", {"figures"}, {"tables", "claims"}),
    ],
)
def test_parts_of_a_study_are_targets(finished, target, has, lacks):
    jobs = finished.jobs(target, "--forceall")
    assert has <= jobs.keys()
    assert not lacks & jobs.keys()
