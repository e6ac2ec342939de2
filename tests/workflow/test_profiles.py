"""The profiles: each is understood, asks for what jobs need, and tries stopped jobs again."""

import re
from pathlib import Path

import pytest
import yaml

from tests.workflow.small_study import RUNS, STUDY

ROOT = Path(__file__).parents[2]
PROFILES = sorted(path.parent.name for path in ROOT.glob("workflow/profiles/*/profile.yaml"))
CLUSTERS = {
    "slurm": "snakemake_executor_plugin_slurm",
    "generic": "snakemake_executor_plugin_cluster_generic",
}
FIT = f"{RUNS}/dtd/block_lora/1shot/seed1/fit.json"

# Fails once for each fit, as after a signal: status 75, with a checkpoint.
STOPPED_ONCE = """#!/bin/bash
if [[ $1 == fit ]]; then
    checkpoint="cache/unfinished/$(echo "$*" | cksum | tr ' ' -)"
    mkdir -p cache/unfinished
    if [[ ! -e $checkpoint ]]; then
        touch "$checkpoint"
        echo "$*" >> calls.txt
        exit 75
    fi
fi
"""

# Dies once in the midst of a verification, as if memory had run out.
KILLED_ONCE = """#!/bin/bash
if [[ $1 == verify-data && ! -e killed ]]; then touch killed; kill -9 $$; fi
"""

# Stands in for the batch system: notes what it was asked for, runs the script, prints a number.
QSUB = """#!/bin/bash
echo "$*" >> queue.txt
bash "${@: -1}" > /dev/null 2>&1 < /dev/null &
echo $!
"""


@pytest.fixture
def snakemake(prepare, tmp_path):
    snakemake = prepare(tmp_path / "workflow")
    (snakemake.folder / "small.yaml").write_text(STUDY)
    snakemake.configure(study="small.yaml", device="auto")
    return snakemake


def profile(name):
    if name in CLUSTERS:
        pytest.importorskip(CLUSTERS[name], reason="an optional dependency")
    return ("--workflow-profile", str(ROOT / "workflow/profiles" / name))


def test_profiles_exist_for_a_workstation_slurm_and_others():
    assert PROFILES == ["default", "generic", "slurm", "workstation"]


@pytest.mark.parametrize("name", ["default", "workstation"])
def test_a_profile_is_understood_and_changes_no_job(snakemake, name):
    jobs = snakemake.jobs(*profile(name))
    assert jobs["fit_dataset"] == jobs["test_untrained"] == jobs["verify_data"] == 2
    assert jobs["shots"] == jobs["decode_shots"] == 2


@pytest.mark.parametrize("name", sorted(CLUSTERS))
def test_a_cluster_computes_on_a_gpu_that_the_login_node_lacks(snakemake, name):
    output = snakemake("--dry-run", "--printshellcmds", *profile(name), "--", FIT)
    assert snakemake.status == 0, output
    assert re.findall(r"blocklora (\S+) .*--device (\S+) .*--precision (\S+)", output) == [
        ("test", "cuda", "fp16"),
        ("fit", "cuda", "fp16"),
    ]
    assert output.count("Group job lists") == 1


@pytest.mark.parametrize(
    ("arguments", "jobs"),
    [
        (["--cores", "12", "--resources", "gpu=2"], ["2", "2"]),
        (["--cores", "12", "--resources", "gpu=9"], ["3", "3"]),  # each has 4 threads
        (["--cores", "12", "--workflow-profile", "none"], ["3", "3"]),
    ],
)
def test_jobs_are_told_how_many_may_compute_on_the_gpus_of_a_machine(snakemake, arguments, jobs):
    snakemake.configure(device="cuda")
    output = snakemake("--dry-run", "--printshellcmds", *arguments, "--", FIT)
    assert snakemake.status == 0, output
    assert re.findall(r"blocklora (?:fit|test) .*--gpu-jobs (\d+)", output) == jobs


def test_every_profile_redoes_the_same(snakemake):
    kept = (
        "rerun-incomplete", "keep-going", "show-failed-logs", "max-checksum-file-size",
        "rerun-triggers", "quiet",
    )  # fmt: skip
    for name in PROFILES:
        settings = yaml.safe_load((ROOT / "workflow/profiles" / name / "profile.yaml").read_text())
        default = yaml.safe_load((ROOT / "workflow/profiles/default/profile.yaml").read_text())
        assert [settings[key] for key in kept] == [default[key] for key in kept], name


def test_a_fit_that_was_stopped_is_tried_again_and_finds_its_checkpoint(snakemake):
    snakemake.configure(device="cpu")
    program = snakemake.folder / "bin/blocklora"
    program.write_text(STOPPED_ONCE + program.read_text().removeprefix("#!/bin/bash\n"))
    output = snakemake(*profile("workstation"), "--", FIT)
    assert snakemake.status == 0, output
    calls = snakemake.calls.read_text().splitlines()
    fits = [call for call in calls if call.startswith("fit ")]
    assert len(fits) == 2
    assert fits[0] == fits[1]
    assert "Trying to restart job" in output
    assert (snakemake.folder / FIT).exists()


def test_a_job_of_a_batch_system_that_dies_of_memory_is_submitted_again_with_more(snakemake):
    options = profile("generic")
    program = snakemake.folder / "bin/blocklora"
    program.write_text(KILLED_ONCE + program.read_text().removeprefix("#!/bin/bash\n"))
    (snakemake.folder / "bin/qsub").write_text(QSUB)
    (snakemake.folder / "bin/qsub").chmod(0o755)
    target = "results/small/data/dtd/verification.json"
    output = snakemake(
        *options, "--latency-wait", "5", "--seconds-between-status-checks", "1", "--", target
    )
    assert snakemake.status == 0, output
    assert (snakemake.folder / target).exists()
    first, second = (snakemake.folder / "queue.txt").read_text().splitlines()
    assert "ncpus=4:ngpus=0:mem=4000mb" in first  # the manifest and its verification together
    assert "ncpus=4:ngpus=0:mem=8000mb" in second
    assert "walltime=270:00" in first
