"""A finished study of the paper's size, published by the commands that the workflow runs."""

import json
import random
import shutil
import subprocess
import sys
from resource import RUSAGE_CHILDREN, getrusage

import pytest

from blocklora.study.study import load_study
from tests.publish.latex import compile_latex
from tests.publish.samples import PAPER, ROOT, write_records, write_theory

COMMANDS = """
import sys
from blocklora.cli import main
from blocklora.experiments import entries, items
from blocklora.study.study import load_study

study, folder = sys.argv[1:]
given = ["--study", study, "--results", folder]

assert main(["aggregate", *given]) == 0

def call(kind, arguments, name, suffixes):
    outputs = [f"{folder}/{name}.{suffix}" for suffix in suffixes.split()]
    call = [kind, *arguments.split(), *given, "--output", *outputs]
    assert main(call) == 0, call

extra = [item for item in entries() if item.entry == "ablation"]
for item in [*items(load_study(study)), *extra]:
    if item.kind == "table":
        call("table", item.arguments, item.name, "csv md tex html")
    else:
        call("figure", item.arguments, f"{item.name}-figure", "pdf png csv tex")
call("claims", "", "claims", "json csv md html")
assert "torch" not in sys.modules
assert "open_clip" not in sys.modules
"""


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """The folder of everything that is published, and the processor's seconds it took."""
    folder = tmp_path_factory.mktemp("paper")
    generator = random.Random(1)
    write_records(load_study(PAPER), folder / "runs", lambda run: generator.uniform(0.3, 0.99))
    write_theory(folder)
    command = [sys.executable, "-c", COMMANDS, str(PAPER), str(folder)]
    before = getrusage(RUSAGE_CHILDREN).ru_utime
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder, getrusage(RUSAGE_CHILDREN).ru_utime - before


def test_the_papers_study_is_published_within_a_minute_and_without_torch(published):
    folder, seconds = published
    assert seconds < 60  # of the processor, since others may be using it too
    document = json.loads((folder / "claims.json").read_text())
    assert document["counts"]["not tested here"] == 2  # the text of the paper; merged arms
    assert len(list(folder.glob("*.png"))) == 7


def test_all_its_tables_and_captions_compile_to_a_pdf(published, tmp_path):
    folder, _ = published
    for path in [*folder.glob("*.tex"), *folder.glob("*.pdf")]:
        shutil.copy(path, tmp_path)
    names = sorted(path.stem for path in tmp_path.glob("*.tex"))
    assert len(names) == 5 + 10 + 7
    said = compile_latex(tmp_path, "".join(rf"\input{{{name}}}\clearpage" for name in names))
    assert "Overfull" not in said
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")
