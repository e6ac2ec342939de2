"""A finished study of the paper's size, published by the commands that the workflow runs."""

import json
import random
import subprocess
import sys
from resource import RUSAGE_CHILDREN, getrusage

from blocklora.study.model import load_study
from tests.publish.samples import PAPER, ROOT, write_records, write_theory

COMMANDS = """
import sys
from blocklora.cli import main

study, folder, *theory = sys.argv[1:]
given = ["--study", study]
runs = [*given, "--aggregate", f"{folder}/runs.csv"]

def call(*arguments):
    assert main([str(argument) for argument in arguments]) == 0, arguments

def files(name, *suffixes):
    return ["--output", *(f"{folder}/{name}.{suffix}" for suffix in suffixes)]

call("aggregate", *given, "--runs", f"{folder}/runs", "--output", f"{folder}/runs.csv")
for shots in (1, 2, 4, 8, 16):
    outputs = files(f"fewshot-{shots}", "csv", "md", "tex", "html")
    call("table", "fewshot", *runs, "--shots", shots, "--published", *outputs)
call("table", "cost", *runs, *theory, *files("cost", "csv", "md", "tex", "html"))
for name in ("statistics", "calibration", "ablation"):
    call("table", name, *runs, *files(name, "csv", "md", "tex", "html"))
for name in ("efficiency", "bounds", "compression", "spectra", "overlaps"):
    call("table", name, *given, *theory, *files(name, "csv", "md", "tex", "html"))
for name in ("accuracy", "cost", "ablation"):
    call("figure", name, *runs, "--published", *files(name, "pdf", "png", "csv", "tex"))
for name in ("efficiency", "bounds", "spectra"):
    call("figure", name, *given, *theory, *files(f"{name}-figure", "pdf", "png", "csv", "tex"))
call("claims", *runs, *theory, *files("claims", "json", "csv", "md", "html"))
assert "torch" not in sys.modules
assert "open_clip" not in sys.modules
"""


def test_the_papers_study_is_published_within_a_minute_and_without_torch(tmp_path):
    study = load_study(PAPER)
    generator = random.Random(1)
    write_records(study, tmp_path / "runs", lambda run: generator.uniform(0.3, 0.99))
    (tmp_path / "theory").mkdir()
    theory = [
        argument
        for name, path in write_theory(tmp_path / "theory").items()
        for argument in (f"--{name}", str(path))
    ]
    command = [sys.executable, "-c", COMMANDS, str(PAPER), str(tmp_path), *theory]
    before = getrusage(RUSAGE_CHILDREN).ru_utime
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    # Of the processor, since others may be using it too.
    assert getrusage(RUSAGE_CHILDREN).ru_utime - before < 60
    document = json.loads((tmp_path / "claims.json").read_text())
    assert document["counts"]["not tested here"] == 1  # about the text of the paper
    assert len(list(tmp_path.glob("*.png"))) == 6
