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

from blocklora.cli import build_parser
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


def is_training(rule):
    return rule.startswith(("train", "zero_shot"))


def trainings(jobs):
    return {rule: count for rule, count in jobs.items() if is_training(rule)}


@pytest.fixture(scope="module")
def finished(prepare, tmp_path_factory):
    """A finished study, never to be changed."""
    folder = tmp_path_factory.mktemp("finished") / "workflow"
    snakemake = prepare(folder)
    (folder / "small.yaml").write_text(STUDY)
    snakemake.configure(study="small.yaml")
    output = snakemake()
    assert snakemake.status == 0, output
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


def test_the_whole_paper_is_listed_without_network_data_or_gpu(prepare, tmp_path):
    jobs = prepare(tmp_path / "workflow").jobs("--config", "study=paper", "seeds_per_job=1")
    cells = 11 * 2 * 5
    assert trainings(jobs) == {
        "zero_shot": 11,
        "train_seeds_1": cells,
        "train_seeds_2": cells,
        "train_seeds_3": cells,
    }
    assert jobs["fetch_dataset"] == jobs["make_manifest"] == jobs["verify_data"] == 11
    assert jobs["shots"] == jobs["decode_shots"] == 11 * 5 * 3
    assert (jobs["fetch_backbone"], jobs["decode_test"], jobs["gate"]) == (1, 11, 11)
    few_shot = [jobs[f"table_fewshot_{shots}shot"] for shots in (1, 2, 4, 8, 16)]
    assert few_shot == [1] * 5
    assert jobs["table_calibration"] == jobs["table_per_class"] == jobs["claims"] == 1
    assert "pretrain_backbone" not in jobs


def test_the_embedded_study_fetches_no_weights(prepare, tmp_path):
    jobs = prepare(tmp_path / "workflow").jobs()
    assert jobs["pretrain_backbone"] == 1
    assert "fetch_backbone" not in jobs
    assert jobs["zero_shot"] == jobs["fetch_dataset"] >= 4


def test_nothing_is_to_be_done_on_a_finished_study(finished):
    assert finished.jobs() == {}


def test_every_rule_calls_its_command_as_the_command_line_expects(finished):
    calls = [line.split() for line in finished.calls.read_text().splitlines()]
    parser = build_parser()
    for call in calls:
        parser.parse_args(call)
    counts = Counter(call[0] for call in calls)
    assert counts["train"] == 4
    assert counts["zero-shot"] == counts["gate"] == 2
    assert counts["decode-images"] == 2 + 4


def test_a_training_has_the_inputs_of_its_seeds_in_order(finished):
    (call,) = re.findall(
        r"^train .*--dataset dtd .*--method block_lora .*$", finished.calls.read_text(), re.M
    )
    lists = [f"results/small/shots/dtd/1shot/seed{seed}.csv" for seed in (1, 2)]
    stores = [f"results/small/pixels/dtd/1shot/seed{seed}.npz" for seed in (1, 2)]
    assert f"--seeds 1 2 --backbone-file {RUNS.replace('runs', 'backbones')}.safetensors" in call
    assert f"--shots-lists {' '.join(lists)} --shots-pixels {' '.join(stores)}" in call
    assert "--test-pixels results/small/pixels/dtd/test-224px.npy" in call


def test_more_seeds_train_the_new_ones_alone(edit):
    jobs = edit(lambda study: study.update(seeds=[1, 2, 3]))
    assert trainings(jobs) == {"train_seeds_3": 4}
    assert jobs["shots"] == jobs["decode_shots"] == 2


def test_fewer_seeds_train_nothing(edit):
    def drop(study):
        study["seeds"] = [1]

    jobs = edit(drop, seeds_per_job=1)
    assert trainings(jobs).keys() <= {"train_seeds_1"}


def test_another_dataset_trains_on_it_alone(edit):
    jobs = edit(lambda study: study["datasets"].append("ucf101"))
    assert trainings(jobs) == {"zero_shot": 1, "train_seeds_1_2": 2}
    assert jobs["fetch_dataset"] == jobs["make_manifest"] == jobs["decode_test"] == 1


def test_more_shots_train_the_new_ones_alone(edit):
    jobs = edit(lambda study: study.update(shots=[1, 2]))
    assert trainings(jobs) == {"train_seeds_1_2": 4}
    assert jobs["shots"] == 4


def test_a_changed_adapter_trains_its_method_alone(edit):
    jobs = edit(lambda study: study["methods"]["block_lora"].update(dropout=0.5))
    assert trainings(jobs) == {"train_seeds_1_2": 2}
    assert "shots" not in jobs


def test_a_changed_recipe_trains_everything_and_leaves_zero_shot_and_data(edit):
    jobs = edit(lambda study: study["recipe"].update(learning_rate=0.001))
    assert trainings(jobs) == {"train_seeds_1_2": 4}
    assert not {"fetch_dataset", "make_manifest", "shots", "decode_test", "gate"} & jobs.keys()


def test_another_title_publishes_again_and_trains_nothing(edit):
    jobs = edit(lambda study: study.update(title="Another title"))
    assert trainings(jobs) == {}
    assert jobs["table_fewshot_1shot"] == jobs["figure_accuracy"] == jobs["claims"] == 1
    assert not {"shots", "decode_test", "gate", "verify_data"} & jobs.keys()


def test_how_it_is_computed_makes_nothing_be_done_again(edit):
    assert (
        edit(
            lambda study: None,
            offline=True,
            weights_root="elsewhere",
            scratch="$TMPDIR",
            data_root="there",
            device="cuda",
            gate="warn",
        )
        == {}
    )


def test_precision_is_part_of_a_result(edit):
    jobs = edit(lambda study: None, precision="bf16")
    assert trainings(jobs) == {"zero_shot": 2, "train_seeds_1_2": 4}
    assert "decode_test" not in jobs


@pytest.mark.parametrize("jump", [-1, 1])
def test_a_clock_that_jumped_makes_nothing_be_done_again(finished, tmp_path, jump):
    changed = finished.copy(tmp_path / "workflow")
    year = jump * 365 * 86400
    for path in (changed.folder / "results/small/runs").rglob("*.*"):
        os.utime(path, (path.stat().st_atime, path.stat().st_mtime + year))
    assert changed.jobs() == {}


def test_one_deleted_run_is_the_only_one_trained(finished, tmp_path):
    changed = finished.copy(tmp_path / "workflow")
    (changed.folder / RUNS / "dtd/clip_lora/1shot/seed2/adapter.safetensors").unlink()
    assert trainings(changed.jobs()) == {"train_seeds_1_2": 1}


def test_a_run_is_a_target_by_its_path(prepare, tmp_path):
    snakemake = prepare(tmp_path / "workflow")
    (tmp_path / "workflow" / "small.yaml").write_text(STUDY)
    snakemake.configure(study="small.yaml", seeds_per_job=1)
    jobs = snakemake.jobs(f"{RUNS}/dtd/block_lora/1shot/seed2/metrics.json")
    assert jobs == {
        "fetch_backbone": 1,
        "fetch_dataset": 1,
        "make_manifest": 1,
        "verify_data": 1,
        "decode_test": 1,
        "shots": 1,
        "decode_shots": 1,
        "zero_shot": 1,
        "gate": 1,
        "train_seeds_2": 1,
    }


@pytest.mark.parametrize(
    ("target", "has", "lacks"),
    [
        ("fetch", {"fetch_dataset", "fetch_backbone"}, {"make_manifest", "zero_shot"}),
        ("data", {"verify_data", "shots"}, {"decode_test", "fetch_backbone"}),
        ("runs", {"zero_shot", "train_seeds_1_2"}, {"aggregate", "claims"}),
        ("tables", {"table_fewshot_1shot", "table_cost"}, {"figure_accuracy", "claims"}),
        ("figures", {"figure_accuracy"}, {"table_fewshot_1shot", "claims"}),
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
        ("seeds_per_job=0", "config.yaml or --config: seeds_per_job: 0 is not allowed"),
        ("precison=fp32", "config.yaml or --config: precison: unknown key; did you mean prec"),
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
