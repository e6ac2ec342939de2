"""The job graph before anything is done: what a study or a target asks for."""

import shutil

import pytest
import yaml

from blocklora.data.registry import PACKAGED
from tests.workflow.small_study import RUNS, STUDY, computations


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
