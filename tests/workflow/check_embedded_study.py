"""What the finished embedded study must show. Run by .ci/run, which names its folder."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest

from blocklora.study.study import load_study
from tests.faults.pipeline import content

ROOT = Path(__file__).parents[2]
FOLDER = Path(os.environ["BLOCKLORA_FOLDER"])
RESULTS = FOLDER / "results" / "mini"


@pytest.fixture(scope="module")
def study():
    return load_study(ROOT / "studies" / "mini.yaml")


@pytest.fixture(scope="module")
def runs():
    return pd.read_csv(RESULTS / "runs.csv")


def snakemake(*arguments, folder=FOLDER):
    command = ["snakemake", "--snakefile", str(ROOT / "Snakefile"), "--directory", str(folder)]
    command += ["--cores", "1", *arguments, "--config", "device=cpu"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout
    return done.stdout


def accuracy(runs, dataset, method, shots):
    cell = runs[(runs.dataset == dataset) & (runs.method == method) & (runs.shots == shots)]
    assert len(cell) > 0
    return cell.test_accuracy.mean()


def test_the_finished_study_has_no_jobs():
    assert "Nothing to be done" in snakemake("--dry-run")


def test_every_run_of_the_study_has_its_row(study, runs):
    found = list(runs[["backbone", "dataset", "method", "shots", "seed"]].itertuples(index=False))
    expected = [tuple(vars(run).values()) for run in study.runs()]
    assert [tuple(row) for row in found] == expected


def test_zero_shot_is_three_times_chance_on_what_the_captions_covered(runs):
    row = runs[(runs.dataset == "mini_covered") & (runs.method == "zero_shot")].iloc[0]
    assert row.test_accuracy >= 3 / row.classes


@pytest.mark.parametrize("method", ["clip_lora", "block_lora"])
def test_adapters_beat_zero_shot_on_real_digits_by_twenty_points(study, runs, method):
    gain = accuracy(runs, "mini_digits", method, max(study.shots)) - accuracy(
        runs, "mini_digits", "zero_shot", 0
    )
    assert gain >= 0.20


@pytest.mark.parametrize("method", ["clip_lora", "block_lora"])
def test_more_shots_beat_fewer(study, runs, method):
    assert accuracy(runs, "mini_digits", method, max(study.shots)) > accuracy(
        runs, "mini_digits", method, min(study.shots)
    )


def cells(page, heading):
    """Return the rows of the Markdown table whose first heading this is, without emphasis."""
    table = re.search(rf"^\| {heading} \|.*\n(?:\|.*\n)+", page, re.M)[0]
    names, _, *rows = [
        [cell.strip() for cell in re.sub(r"\*\*|</?ins>", "", line).strip("|").split("|")]
        for line in table.splitlines()
    ]
    return [dict(zip(names, row, strict=True)) for row in rows]


def test_the_readme_shows_the_accuracies_of_four_shots(runs):
    """On another kind of processor than the README names, accuracies differ a little."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    processor = runs.device_name[0]
    if processor not in readme:
        pytest.skip(f"the README's table was not computed on an {processor}")
    made = cells((RESULTS / "tables/fewshot-4shot.md").read_text(encoding="utf-8"), "method")
    shown = cells(readme, "4 shots")
    assert shown == [
        {"4 shots": row.pop("method")} | {k: v for k, v in row.items() if k != "origin"}
        for row in made
    ]


def test_tables_figures_and_verdicts_are_there(study):
    backbone = next(iter(study.backbones))
    for shots in study.shots:
        for form in ("csv", "md", "tex", "html"):
            assert (RESULTS / f"tables/fewshot-{shots}shot.{form}").stat().st_size > 100
    for form in ("pdf", "png"):
        assert (RESULTS / f"figures/{backbone}/accuracy.{form}").stat().st_size > 5000
    verdicts = json.loads((RESULTS / "claims.json").read_text())["counts"]
    assert "supported" in verdicts
    assert "not tested here" in verdicts


def test_runs_and_theory_give_the_same_tables_and_verdicts_in_a_fresh_folder(tmp_path):
    """Nothing is fetched, decoded, fitted or computed again, whatever the times of the files."""
    shutil.copy(FOLDER / "config.yaml", tmp_path)
    for name in ("runs", "theory"):
        shutil.copytree(RESULTS / name, tmp_path / "results/mini" / name, copy_function=shutil.copy)
    output = snakemake(folder=tmp_path)
    assert "36 of 36 runs are finished" in output
    assert "5 of 5 steps (100%) done" in output
    assert not (tmp_path / "data").exists()
    for path in [*RESULTS.glob("tables/*"), RESULTS / "claims.md", RESULTS / "runs.csv"]:
        made = tmp_path / "results/mini" / path.relative_to(RESULTS)
        assert made.read_bytes() == path.read_bytes(), path.name
    figures = [path.relative_to(RESULTS) for path in RESULTS.glob("figures/*/*")]
    assert [path for path in figures if not (tmp_path / "results/mini" / path).exists()] == []


def test_the_report_has_every_section():
    report = (FOLDER / "report.html").read_text()
    for section in ("Claims", "Accuracy", "Cost", "Theory", "Runs"):
        assert section in report


def test_a_run_that_is_done_again_is_equal_to_the_last_byte(study):
    """Alone, where it was one of many in its process."""
    backbone = next(iter(study.backbones))
    target = f"results/mini/runs/{backbone}/mini_digits/block_lora/1shot/seed1"
    folder = FOLDER / target
    names = [str(path.relative_to(folder)) for path in folder.rglob("*.*")]
    assert len(names) == 5
    before = {name: content(folder / name) for name in names}
    shutil.rmtree(folder)
    for kind in ("fits", "tests"):
        shutil.rmtree(FOLDER / "cache" / kind)
    snakemake(*(f"{target}/{name}" for name in names))
    assert {name: content(folder / name) for name in names} == before
