"""A finished study of the paper's size, published by the commands that the workflow runs."""

import json
import random
import shutil
import subprocess
import sys
from resource import RUSAGE_CHILDREN, getrusage

import pytest

from blocklora.study.model import load_study
from tests.publish.latex import compile_latex
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
    call("figure", name, *runs, "--published", *files(f"{name}-figure", "pdf", "png", "csv", "tex"))
for name in ("efficiency", "bounds", "spectra"):
    call("figure", name, *given, *theory, *files(f"{name}-figure", "pdf", "png", "csv", "tex"))
call("claims", *runs, *theory, *files("claims", "json", "csv", "md", "html"))
assert "torch" not in sys.modules
assert "open_clip" not in sys.modules
"""


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """The folder of everything that is published, and the processor's seconds it took."""
    folder = tmp_path_factory.mktemp("paper")
    generator = random.Random(1)
    write_records(load_study(PAPER), folder / "runs", lambda run: generator.uniform(0.3, 0.99))
    (folder / "theory").mkdir()
    theory = [
        argument
        for name, path in write_theory(folder / "theory").items()
        for argument in (f"--{name}", str(path))
    ]
    command = [sys.executable, "-c", COMMANDS, str(PAPER), str(folder), *theory]
    before = getrusage(RUSAGE_CHILDREN).ru_utime
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder, getrusage(RUSAGE_CHILDREN).ru_utime - before


def test_the_papers_study_is_published_within_a_minute_and_without_torch(published):
    folder, seconds = published
    assert seconds < 60  # of the processor, since others may be using it too
    document = json.loads((folder / "claims.json").read_text())
    assert document["counts"]["not tested here"] == 2  # the text of the paper; merged arms
    assert len(list(folder.glob("*.png"))) == 6


def test_all_its_tables_and_captions_compile_to_a_pdf(published, tmp_path):
    folder, _ = published
    for path in [*folder.glob("*.tex"), *folder.glob("*.pdf")]:
        shutil.copy(path, tmp_path)
    names = sorted(path.stem for path in tmp_path.glob("*.tex"))
    assert len(names) == 5 + 9 + 6
    said = compile_latex(tmp_path, "".join(rf"\input{{{name}}}\clearpage" for name in names))
    assert "Overfull" not in said
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")
