"""Studies that overlap: what one has made, the other takes, at the same time or later."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from blocklora.cache import Cache
from blocklora.yamlfiles import read_yaml
from tests.workflow.fork_server import served
from tests.workflow.test_miniature_tree import STUDY

ROOT = Path(__file__).parents[2]
SHARED = 4  # runs of CLIP-LoRA and zero-shot's test, which both studies have


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two studies of one backbone and one dataset, of which the second has one more method."""
    folder = tmp_path_factory.mktemp("two")
    (folder / "bin").mkdir()
    shutil.copy(ROOT / "config.yaml", folder)
    for name, methods in (("first", ("zero_shot", "clip_lora")), ("second", ())):
        study = read_yaml(ROOT / "studies/mini.yaml")
        study |= {"name": name, "title": name, "datasets": ["mini_digits"]}
        study["miniature"] = STUDY["miniature"]
        study["recipe"]["iterations_per_shot"] = 10
        if methods:
            study["methods"] = {key: study["methods"][key] for key in methods}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
    with served(tmp_path_factory.mktemp("s") / "s") as program:
        (folder / "bin/blocklora").write_text(program)
        (folder / "bin/blocklora").chmod(0o755)
        yield folder


def start(folder, study):
    """Start a study up to its runs."""
    command = ["snakemake", "--snakefile", str(ROOT / "Snakefile"), "--cores", "1", "runs"]
    command += ["--config", f"study={study}.yaml", "device=cpu"]
    environment = {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}"}
    return subprocess.Popen(
        command,
        cwd=folder,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def fitted(folder, study):
    """Return the runs that were fitted, not found, for a study."""
    log = (folder / f"results/{study}/logs/fit/mini-clip/mini_digits.log").read_text()
    return re.findall(r"^run (\S+): fitted in", log, re.M)


def test_two_studies_at_once_finish_and_share_the_work(folder):
    processes = {name: start(folder, name) for name in ("first", "second")}
    for name, process in processes.items():
        output = process.communicate(timeout=300)[0]
        assert process.returncode == 0, f"{name}: {output}"
    kinds = [entry.kind for entry in Cache(folder / "cache").entries()]
    assert (kinds.count("weights"), kinds.count("manifests")) == (1, 1)
    done = {name: fitted(folder, name) for name in processes}
    assert sorted([*done["first"], *done["second"]]) == sorted(
        f"mini-clip/mini_digits/{method}/{shots}shot/seed{seed}"
        for method in ("clip_lora", "block_lora")
        for shots in (1, 4)
        for seed in (1, 2)
    )
    runs = folder / "results/first/runs"
    files = [path.relative_to(runs) for path in runs.rglob("*.*")]
    assert len(files) == SHARED * 5 + 1
    for file in files:
        assert (runs / file).read_bytes() == (folder / "results/second/runs" / file).read_bytes()
    assert [path.name for path in (folder / "cache").rglob(".*")] == []
    assert list((folder / "cache/unfinished").iterdir()) == []


def test_a_study_under_another_name_fits_nothing(folder):
    """A folder of results that was copied under another name is taken as it is."""
    study = read_yaml(folder / "second.yaml") | {"name": "third"}
    (folder / "third.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
    shutil.copytree(folder / "results/second/runs", folder / "results/third/runs")
    output = start(folder, "third").communicate(timeout=300)[0]
    assert "Nothing to be done" in output
    shutil.rmtree(folder / "results/third")
    process = start(folder, "third")
    assert process.communicate(timeout=300)[0].count("Fitting 8 of 8 runs") == 1
    assert process.returncode == 0
    assert fitted(folder, "third") == []
