"""Every command the README shows exists and is understood as it stands there."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from blocklora.cli import commands

ROOT = Path(__file__).parents[2]
PROGRAMS = ("make", "snakemake", "blocklora")


def shown_commands() -> list[str]:
    text = (ROOT / "README.md").read_text()
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.M | re.S)
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))
    lines = [line for block in blocks for line in block.splitlines()] + spans
    return sorted({line for line in lines if line.split()[0] in PROGRAMS and " " in line})


COMMANDS = shown_commands()


def test_the_readme_shows_the_main_commands():
    assert {"make demo", "make test"} <= set(COMMANDS)
    assert "snakemake --cores 1 --resources gpu=1" in COMMANDS


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("make")])
def test_make_has_the_target(command):
    done = subprocess.run(
        [*command.split(), "--dry-run"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("snakemake")])
def test_snakemake_lists_the_jobs(command, prepare, tmp_path):
    snakemake = prepare(tmp_path / "workflow")
    arguments = shlex.split(command)[1:]
    output = snakemake(*arguments, *([] if "-n" in arguments else ["--dry-run"]))
    assert snakemake.status == 0, output
    assert "Job stats" in output


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("blocklora")])
def test_blocklora_has_the_subcommand(command):
    assert command.split()[1] in commands.commands
