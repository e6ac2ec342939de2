import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.workflow.fork_server import served

ROOT = Path(__file__).parents[2]

# Imports Snakemake once and forks for each call, since the import takes seconds.
SERVER = """
import json, os, sys
import snakemake.cli
for line in sys.stdin:
    call = json.loads(line)
    child = os.fork()
    if child == 0:
        output = os.open(call["output"], os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.chdir(call["folder"])
        os.environ.update(call["environment"])
        sys.argv = ["snakemake", *call["arguments"]]
        try:
            snakemake.cli.main(call["arguments"])
        except SystemExit as end:
            print("heavy imports:", {"torch", "open_clip"} & sys.modules.keys())
            raise
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Snakemake:
    """Calls Snakemake on a folder of its own."""

    def __init__(self, server, folder, environment):
        self.server, self.folder, self.environment = server, folder, environment
        self.calls = folder / "calls.txt"
        self.status = None

    def __call__(self, *arguments):
        """Run Snakemake and return what it printed."""
        output = self.folder / "output.txt"
        programs = self.folder / "bin"
        environment = {"PATH": f"{programs}:{os.environ['PATH']}"}
        call = {
            "folder": str(self.folder),
            "output": str(output),
            "environment": environment | self.environment,
            "arguments": ["--snakefile", str(ROOT / "Snakefile"), "--cores", "4", *arguments],
        }
        self.server.stdin.write(json.dumps(call) + "\n")
        self.server.stdin.flush()
        self.status = int(self.server.stdout.readline())
        return output.read_text()

    def jobs(self, *arguments):
        """Return how many jobs of each rule a dry run lists."""
        output = self("--dry-run", *arguments)
        assert self.status == 0, output
        if "Nothing to be done" in output:
            return {}
        table = re.search(r"^job +count\n[- ]+\n(.*?)^total", output, re.M | re.S)[1]
        counts = {rule: int(count) for rule, count in re.findall(r"^(\S+) +(\d+)$", table, re.M)}
        return {rule: count for rule, count in counts.items() if rule != "all"}

    def configure(self, **values):
        path = self.folder / "config.yaml"
        path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | values))

    def copy(self, folder):
        """Return the same state in another folder."""
        shutil.copytree(self.folder, folder, symlinks=True)
        return Snakemake(self.server, folder, self.environment)


@pytest.fixture(scope="session")
def server():
    command = [sys.executable, "-c", SERVER]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    yield process
    process.stdin.close()
    process.wait(timeout=10)


@pytest.fixture(scope="session")
def stand_in(tmp_path_factory):
    """The program of `stand_in.py`."""
    with served(tmp_path_factory.mktemp("s") / "s", "stand-in") as program:
        yield program


@pytest.fixture(scope="session")
def prepare(server, stand_in):
    """Make a folder with the project's configuration and a program in place of `blocklora`."""

    def prepare_folder(folder, program=stand_in, **environment):
        (folder / "bin").mkdir(parents=True)
        (folder / "bin" / "blocklora").write_text(program)
        (folder / "bin" / "blocklora").chmod(0o755)
        shutil.copy(ROOT / "config.yaml", folder)
        snakemake = Snakemake(server, folder, environment)
        snakemake.configure(device="cpu", job_hours=1000)
        return snakemake

    return prepare_folder
