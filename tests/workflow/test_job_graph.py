"""The job graph: what a study asks for, and what a change makes be done again.

`blocklora` is replaced by a stand-in that writes the files it is asked for, so that Snakemake has
its records of a finished study.
"""

import os
import re
import shutil
from collections import Counter

import pytest
import yaml

from blocklora.data.registry import PACKAGED

STUDY = """
name: small
title: A small study
backbones: {ViT-B-16-quickgelu: {source: openai}}
datasets: [dtd, eurosat]
shots: [1]
seeds: [1, 2]
methods:
  zero_shot: {kind: zero_shot}
  clip_lora: &lora
    {kind: adapter, rank: 2, blocks: 1, partition: rank, alpha: 1, dropout: 0.25,
     matrices: [q, k, v], layers: all, towers: [vision, text]}
  block_lora:
    {kind: adapter, rank: 2, blocks: 2, partition: rank, alpha: 1, dropout: 0.25,
     matrices: [q, k, v], layers: all, towers: [vision, text]}
recipe:
  {prompt: a photo of a {}., iterations_per_shot: 500, batch_size: 32, learning_rate: 2.0e-4,
   final_learning_rate: 1.0e-6, weight_decay: 1.0e-2, betas: [0.9, 0.999],
   crop_scale: [0.08, 1], flip_probability: 0.5, logit_scale: 100, log_every: 50}
""".replace("a photo of a {}.", '"a photo of a {}."')

RUNS = "results/small/runs/ViT-B-16-quickgelu"


def computations(jobs):
    """Return the fits and tests among the jobs."""
    return {rule: count for rule, count in jobs.items() if rule.startswith(("fit_", "test_"))}


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


@pytest.mark.parametrize(
    ("hours", "fits"),
    [
        (8, {"fit_dataset": 11}),
        (1, {"fit_shots": 11 * 4 + 3, "fit_run_adapter": 8 * 2 * 3}),
        (0.01, {"fit_run_adapter": 11 * 2 * 5 * 3}),
    ],
)
def test_the_whole_paper_is_listed_without_network_data_or_gpu(prepare, tmp_path, hours, fits):
    snakemake = prepare(tmp_path / "workflow")
    jobs = snakemake.jobs("--config", "study=paper", f"job_hours={hours}", "device=cuda")
    assert computations(jobs) == {"test_untrained": 11, **fits}
    once = ("fetch_dataset", "make_manifest", "verify_data", "shots", "decode_shots", "gate")
    assert {jobs[rule] for rule in once} == {11}
    assert (jobs["fetch_backbone"], jobs["decode_test"]) == (1, 11)
    assert jobs["tables"] == jobs["figures"] == jobs["claims"] == 1
    assert "pretrain_backbone" not in jobs


def test_a_dry_run_of_the_paper_is_a_page_that_says_what_is_missing(prepare, tmp_path):
    output = prepare(tmp_path / "workflow")("--dry-run", "--config", "study=paper")
    lines = output.splitlines()
    assert len(lines) < 100
    assert max(map(len, lines)) < 200
    assert "Study paper: 0 of 341 runs are finished." in lines
    assert "  165 of block_lora: not fitted" in lines
    assert "Complete" not in output
    assert "Reason" not in output


def test_a_dry_run_lists_single_jobs_if_it_is_asked_to(prepare, tmp_path):
    output = prepare(tmp_path / "workflow")("--dry-run", "--printshellcmds")
    assert "Fitting 8 of 8 runs on mini_digits" in output
    assert "blocklora fit --study" in output


def test_the_embedded_study_fetches_no_weights(prepare, tmp_path):
    jobs = prepare(tmp_path / "workflow").jobs()
    assert jobs["pretrain_backbone"] == 1
    assert "fetch_backbone" not in jobs
    assert jobs["test_untrained"] == jobs["fetch_dataset"] >= 4


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
            gate="warn",
        )
        == {}
    )


def test_precision_is_part_of_a_result(edit):
    jobs = edit(lambda study: None, precision="bf16")
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


def test_the_test_on_another_dataset_follows_the_fit(prepare, tmp_path):
    snakemake = prepare(tmp_path / "workflow")
    (tmp_path / "workflow" / "small.yaml").write_text(STUDY)
    snakemake.configure(study="small.yaml")
    target = f"{RUNS}/dtd/block_lora/1shot/seed2/tests/eurosat/test.safetensors"
    jobs = snakemake.jobs(target)
    assert computations(jobs) == {
        "test_untrained": 1,
        "fit_run_adapter": 1,
        "test_elsewhere": 1,
    }
    assert jobs["fetch_dataset"] == jobs["decode_test"] == 2


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


def test_a_run_is_a_target_by_its_path(prepare, tmp_path):
    snakemake = prepare(tmp_path / "workflow")
    (tmp_path / "workflow" / "small.yaml").write_text(STUDY)
    snakemake.configure(study="small.yaml")
    jobs = snakemake.jobs(f"{RUNS}/dtd/block_lora/1shot/seed2/fit.json")
    assert jobs == {
        "fetch_backbone": 1,
        "fetch_dataset": 1,
        "make_manifest": 1,
        "verify_data": 1,
        "decode_test": 1,
        "shots": 1,
        "decode_shots": 1,
        "test_untrained": 1,
        "gate": 1,
        "fit_run_adapter": 1,
    }


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


def test_efficiency_needs_neither_data_nor_weights(prepare, tmp_path):
    jobs = prepare(tmp_path / "workflow").jobs(
        "--config", "study=paper", "--", "results/paper/tables/efficiency.md"
    )
    assert jobs == {"efficiency": 1, "table_efficiency": 1}


def test_efficiency_makes_the_manifest_of_a_dataset_whose_prompts_are_not_listed(prepare, tmp_path):
    """A dataset can be published before anybody listed the lengths of its prompts."""
    registry = tmp_path / "registry"
    shutil.copytree(PACKAGED, registry)
    published = yaml.safe_load((registry / "paper.yaml").read_text())
    (registry / "later.yaml").write_text(yaml.safe_dump({"later": published["dtd"]}))
    snakemake = prepare(tmp_path / "workflow", BLOCKLORA_REGISTRY=str(registry))
    (snakemake.folder / "small.yaml").write_text(STUDY.replace("[dtd, eurosat]", "[dtd, later]"))
    snakemake.configure(study="small.yaml")
    jobs = snakemake.jobs("results/small/theory/efficiency.csv")
    assert jobs == {"fetch_dataset": 1, "make_manifest": 1, "efficiency": 1}


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("study=papr", "study: papr is neither a file nor a study in"),
        ("job_hours=0", "config.yaml and --config: job_hours: 0 is not allowed"),
        ("precison=fp32", "config.yaml and --config: precison: unknown key; did you mean prec"),
    ],
)
def test_a_fault_of_the_configuration_ends_snakemake_with_one_line(
    prepare, tmp_path, setting, message
):
    snakemake = prepare(tmp_path / "workflow")
    output = snakemake("--dry-run", "--config", setting)
    assert snakemake.status == 1
    assert [line for line in output.splitlines() if line.startswith(message)]
    assert "Traceback" not in output
    assert 'File "' not in output


def test_a_fault_of_the_study_ends_snakemake_with_one_line(prepare, tmp_path):
    snakemake = prepare(tmp_path / "workflow")
    (tmp_path / "workflow" / "small.yaml").write_text(STUDY.replace("dtd,", "dtdd,"))
    output = snakemake("--dry-run", "--config", "study=small.yaml")
    assert snakemake.status == 1
    assert "small.yaml: datasets[0]: dtdd is neither in the registry" in output
    assert "did you mean dtd?" in output
    assert "Traceback" not in output


def test_starting_snakemake_imports_nothing_heavy(prepare, tmp_path):
    assert "heavy imports: set()" in prepare(tmp_path / "workflow")("--dry-run")
