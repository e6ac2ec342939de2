"""The embedded study on a Slurm cluster that pre-empts, cancels and drains.

Run by `make test-slurm`, as root. BLOCKLORA_FOLDER may name a folder that holds the study's local
results already; without it they are made here.
"""

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep

import pytest

from blocklora.locks import read_holder
from tests.faults.pipeline import content
from tests.slurm.cluster import missing_programs, running_cluster

ROOT = Path(__file__).parents[2]
PROFILE = ROOT / "workflow/profiles/slurm"
RESULTS = "results/mini"
FIT = "fit_dataset"
DEADLINE_SECONDS = 1500  # a hanging cluster ends the test, whoever called it


@dataclass
class Disturbed:
    """A study on the cluster, and the disturbances that it met.

    Attributes:
        folder: The folder in which it ran.
        output: The output of Snakemake.
        requeued: Folder of the run whose job was queued again in the midst of it.
        cancelled: Folder of the run whose job was cancelled in the midst of it.
        visible_gpus: The GPUs that Slurm told those two fits to use.
        states_while_drained: The states of all jobs, seconds after the last one had ended.
        seconds: The time of the whole study.
    """

    folder: Path
    output: str
    requeued: str
    cancelled: str
    visible_gpus: list[str]
    states_while_drained: set[str]
    seconds: float


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    if missing := missing_programs():
        pytest.skip(f"Slurm is not installed here: {', '.join(missing)} missing")
    if os.geteuid() != 0:
        pytest.skip("the daemons of Slurm need root here")
    with running_cluster(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """The folder of the study's results without Slurm."""
    if "BLOCKLORA_FOLDER" in os.environ:
        return Path(os.environ["BLOCKLORA_FOLDER"])
    folder = tmp_path_factory.mktemp("local")
    shutil.copy(ROOT / "config.yaml", folder)
    command = [*snakemake(folder), "--cores", "2", "--config", "device=cpu"]
    subprocess.run(command, check=True, timeout=DEADLINE_SECONDS)
    return folder


@pytest.fixture(scope="module")
def disturbed(cluster, tmp_path_factory):
    folder = tmp_path_factory.mktemp("slurm")
    shutil.copy(ROOT / "config.yaml", folder)
    # The profile's own jobs; fits ask for a GPU although they compute without.
    command = [
        *snakemake(folder), "--workflow-profile", str(PROFILE), "--config", "device=cpu",
        "--set-resources", f"{FIT}:gpu=1", "--slurm-no-account",
        "--slurm-status-command", "squeue", "--slurm-init-seconds-before-status-checks", "5",
        "--seconds-between-status-checks", "5",
    ]  # fmt: skip
    deadline, started = monotonic() + DEADLINE_SECONDS, monotonic()
    output = folder / "output.txt"
    environment = {**os.environ, **cluster.environment}
    with output.open("w") as stream:
        process = subprocess.Popen(
            command, env=environment, stdout=stream, stderr=subprocess.STDOUT
        )
    try:
        work = Work(folder / RESULTS, process, output, deadline)
        requeued, job, gpu = work.wait_for_fit(other_than=())
        cluster.call("scontrol", "requeue", job)
        gpus = [gpu]
        sleep(2)
        cluster.call("scontrol", "update", f"JobId={job}", "StartTime=now")
        cancelled, job, gpu = work.wait_for_fit(other_than=(cell(requeued),))
        cluster.call("scancel", job)
        gpus.append(gpu)
        work.wait_for_fit(other_than=(cell(requeued), cell(cancelled)))
        cluster.call("scontrol", "update", "NodeName=node1", "State=DRAIN", "Reason=test")
        work.wait(lambda: cluster.node_state() == "drained", "the node to be drained")
        sleep(10)
        states = set(cluster.call("squeue", "--noheader", "--format=%T").split())
        cluster.call("scontrol", "update", "NodeName=node1", "State=RESUME")
        work.wait(lambda: process.poll() is not None, "the end of the study")
    finally:
        process.kill()
        process.wait()
    seconds = monotonic() - started
    text = output.read_text()
    assert process.returncode == 0, f"{text[-8000:]}\n{cluster.logs()}"
    return Disturbed(folder, text, requeued, cancelled, gpus, states, seconds)


class Work:
    """Watches the fits of a study in work."""

    def __init__(self, results: Path, process: subprocess.Popen, output: Path, deadline: float):
        self._results, self._process = results, process
        self._cache = results.parents[1] / "cache"
        self._output, self._deadline = output, deadline

    def wait(self, condition, what: str):
        """Return what `condition` returns as soon as it is true."""
        while True:
            ended = self._process.poll() is not None
            if found := condition():
                return found
            if ended or monotonic() > self._deadline:
                why = "Snakemake ended" if ended else "it took too long"
                pytest.fail(f"waiting for {what}: {why}\n{self._output.read_text()[-8000:]}")
            sleep(0.05)

    def wait_for_fit(self, other_than: tuple[str, ...]) -> tuple[str, str, str]:
        """Return a long run in the midst of its fit, its Slurm job and the GPUs it sees."""

        def find():
            for path in self._cache.glob("unfinished/*.lock"):
                holder = read_holder(path)
                run = holder.what.removeprefix("run ") if holder else ""
                if "/4shot/" not in run or cell(run) in other_than:
                    continue
                if self._has_begun(run):
                    variables = environment_of(holder.pid)
                    if "SLURM_JOB_ID" in variables:
                        gpus = variables.get("CUDA_VISIBLE_DEVICES", "")
                        return run, variables["SLURM_JOB_ID"], gpus
            return None

        return self.wait(find, "a fit")

    def _has_begun(self, run: str) -> bool:
        log = log_of(self._results, run)
        return log.exists() and f"run {run}: step " in log.read_text()


def snakemake(folder):
    """Return a call of Snakemake for a folder with a configuration."""
    return ["snakemake", "--snakefile", str(ROOT / "Snakefile"), "--directory", str(folder)]


def cell(run):
    """Return backbone and dataset of a run, whose runs one job fits."""
    return "/".join(run.split("/")[:2])


def log_of(results, run):
    """Return the log of the job that fits a run."""
    return results / "logs/fit" / f"{cell(run)}.log"


def environment_of(pid):
    """Return the environment variables of a process, none if it is gone."""
    try:
        text = Path(f"/proc/{pid}/environ").read_text()
    except OSError:
        return {}
    return dict(item.split("=", 1) for item in text.split("\0") if "=" in item)


def result_files(folder):
    """Return the files of the runs and what was made of them, as paths below the results."""
    results = folder / RESULTS
    found = [*results.glob("runs/**/*.*"), results / "runs.csv", *results.glob("theory/*.csv")]
    return {path.relative_to(results) for path in found if not path.name.startswith(".")}


def test_results_equal_those_without_slurm(disturbed, local):
    assert result_files(disturbed.folder) == result_files(local)
    assert len(result_files(local)) > 100
    for name in sorted(result_files(local)):
        assert content(disturbed.folder / RESULTS / name) == content(local / RESULTS / name), name


@pytest.mark.parametrize("what", ["requeued", "cancelled"])
def test_a_fit_that_was_stopped_went_on_from_its_checkpoint(disturbed, what):
    run = getattr(disturbed, what)
    assert f"run {run}: continued from step" in log_of(disturbed.folder / RESULTS, run).read_text()


def test_no_unfinished_work_is_left(disturbed):
    assert list((disturbed.folder / "cache/unfinished").iterdir()) == []


def test_fits_see_the_gpu_that_slurm_gave_them(disturbed):
    assert disturbed.visible_gpus == ["0", "0"]


def test_jobs_wait_for_a_drained_node(disturbed):
    assert disturbed.states_while_drained == {"PENDING"}


def test_short_steps_share_jobs(disturbed):
    submitted = disturbed.output.count("has been submitted with SLURM jobid")
    assert 0 < submitted < 60, submitted


def test_the_cluster_test_takes_at_most_fifteen_minutes(disturbed):
    assert disturbed.seconds < 900
