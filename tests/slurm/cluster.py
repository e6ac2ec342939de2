"""A Slurm cluster of one node in a folder: munge, controller and node daemon, run as root.

No accounting database; one dummy device stands in for a GPU. Memory and processors are declared
larger than they are, so that requests made for real machines are granted on a small one.
"""

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol", "scancel")
NODE = "node1"
PARTITION = "gpu"
CPUS = 16

CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=2,batch_sched_delay=1,requeue_setup_env_fail
MinJobAge=600
KillWait=10
ReturnToService=2
GresTypes=gpu
NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=256000 Gres=gpu:1
PartitionName={partition} Nodes={node} Default=YES State=UP MaxTime=INFINITE
"""


class Cluster:
    """A cluster that is running."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.environment = {
            "SLURM_CONF": str(folder / "slurm.conf"),
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
        }

    def call(self, *command: str) -> str:
        """Run a program of Slurm and return what it printed."""
        environment = {**os.environ, **self.environment}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr or done.stdout}")
        return done.stdout

    def node_state(self) -> str:
        """Return the state of the node, such as idle or drained."""
        return self.call("sinfo", "--noheader", "--format=%T").strip()

    def logs(self) -> str:
        """Return the ends of the daemons' logs, to explain a failure."""
        texts = [path.read_text()[-3000:] for path in sorted(self.folder.glob("*.log"))]
        return "\n".join(texts)


def missing_programs() -> list[str]:
    """Return the programs of Slurm that are not installed."""
    return [name for name in PROGRAMS if not shutil.which(name)]


@contextmanager
def running_cluster(folder: Path) -> Iterator[Cluster]:
    """Start a cluster in `folder` and stop it afterwards.

    Raises:
        RuntimeError: A daemon does not come up; the message has the ends of the logs.
    """
    for name in ("munge", "state", "spool"):
        (folder / name).mkdir(parents=True, mode=0o700)
    host = socket.gethostname().split(".")[0]
    (folder / "slurm.conf").write_text(
        CONFIGURATION.format(
            folder=folder, host=host, node=NODE, partition=PARTITION, cpus=CPUS,
            controller_port=_free_port(), node_port=_free_port(),
        )
    )  # fmt: skip
    (folder / "gres.conf").write_text(f"NodeName={NODE} Name=gpu File=/dev/null\n")
    cluster = Cluster(folder)
    _wrap_srun(folder)
    daemons = []
    try:
        daemons.append(_start_munge(folder / "munge"))
        environment = {**os.environ, **cluster.environment}
        for command in (("slurmctld", "-D", "-i"), ("slurmd", "-D", "-N", NODE)):
            daemons.append(subprocess.Popen(command, env=environment, **_QUIET))
        _wait_until_idle(cluster)
        yield cluster
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
            daemon.wait(timeout=30)


_QUIET = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}


def _wrap_srun(folder: Path) -> None:
    """Let `srun` find the cluster: Snakemake's executor calls it without Slurm's variables."""
    program = folder / "bin/srun"
    program.parent.mkdir()
    conf, srun = folder / "slurm.conf", shutil.which("srun")
    program.write_text(f'#!/bin/sh\nSLURM_CONF="{conf}" exec {srun} "$@"\n')
    program.chmod(0o755)


def _start_munge(folder: Path) -> subprocess.Popen:
    key = folder / "key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    folder.chmod(0o711)  # jobs reach the socket through it
    places = {"key": key, "socket": folder / "socket", "pid": folder / "pid",
              "seed": folder / "seed", "log": folder / "log"}  # fmt: skip
    options = [f"--{name}-file={path}" for name, path in places.items() if name != "socket"]
    command = ["munged", "--foreground", "--force", f"--socket={places['socket']}", *options]
    daemon = subprocess.Popen(command, **_QUIET)
    _wait(lambda: places["socket"].exists(), 30, lambda: f"munged: {places['log'].read_text()}")
    return daemon


def _wait_until_idle(cluster: Cluster) -> None:
    def idle() -> bool:
        try:
            return cluster.node_state() == "idle"
        except RuntimeError:  # the controller does not answer yet
            return False

    _wait(idle, 60, lambda: f"the cluster does not come up:\n{cluster.logs()}")


def _wait(condition, seconds: float, message) -> None:
    deadline = monotonic() + seconds
    while not condition():
        if monotonic() > deadline:
            raise RuntimeError(message())
        sleep(0.2)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
