import csv
import json
import logging

import pytest

from blocklora.cli import main
from blocklora.errors import UserError
from blocklora.runs.aggregate import COLUMNS, aggregate
from blocklora.study.model import Run, load_study
from tests.publish.samples import CLIP_LORA, METHODS, ROOT, write_records, write_study

RUN = Run("ViT-B-16-quickgelu", "dtd", "block_lora", 4, 2)


@pytest.fixture
def made(tmp_path):
    path = write_study(tmp_path / "made.yaml")
    runs = write_records(load_study(path), tmp_path / "runs", lambda run: 0.5 + run.seed / 100)
    return path, runs, tmp_path / "runs.csv"


def rewrite(runs, change, run=RUN):
    path = runs / run.folder / "metrics.json"
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))
    return path


def test_every_run_becomes_one_row_in_the_order_of_the_study(made):
    study_path, runs, output = made
    aggregate(study_path, runs, output)
    rows = list(csv.DictReader(output.open()))
    keys = [
        Run(row["backbone"], row["dataset"], row["method"], int(row["shots"]), int(row["seed"]))
        for row in rows
    ]
    assert keys == list(load_study(study_path).runs())
    row = rows[keys.index(RUN)]
    assert float(row["test_accuracy"]) == 0.52
    assert (row["rank"], row["blocks"], row["partition"]) == ("2", "2", "rank")
    assert (row["trainable_parameters"], row["energy_joules"]) == ("138240", "7200.0")


def test_zero_shot_rows_leave_the_adapter_empty(made):
    study_path, runs, output = made
    aggregate(study_path, runs, output)
    row = next(csv.DictReader(output.open()))
    assert (row["method"], row["rank"], row["train_accuracy"]) == ("zero_shot", "", "")


def test_columns_are_those_of_the_architecture_document():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    section = text.split("## The aggregate: `runs.csv`")[1].split("`")[1]
    assert tuple(name.strip() for name in section.split(",")) == COLUMNS


def test_missing_runs_are_an_error_that_lists_them(made):
    study_path, runs, output = made
    (runs / RUN.folder / "metrics.json").unlink()
    with pytest.raises(UserError, match=f"1 of 26 runs are missing: {RUN.folder}; .*--partial"):
        aggregate(study_path, runs, output)
    assert not output.exists()


def test_partial_aggregates_log_the_missing_runs(made, caplog):
    study_path, runs, output = made
    (runs / RUN.folder / "metrics.json").unlink()
    with caplog.at_level(logging.WARNING):
        aggregate(study_path, runs, output, partial=True)
    assert RUN.folder in caplog.text
    assert len(output.read_text().splitlines()) == 26


@pytest.mark.parametrize("text", ["", '{"schema": 1, "run"', "[]", "\x00\x01", '{"schema": 1}'])
def test_a_corrupt_record_is_named(made, text):
    study_path, runs, output = made
    path = runs / RUN.folder / "metrics.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"seed2/metrics\.json"):
        aggregate(study_path, runs, output)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r["run"].update(seed=3), "is the record of seed 3, its place is that of 2"),
        (lambda r: r["run"].update(study="mini"), "is the record of study 'mini'"),
        (lambda r: r["adapter"].update(rank=8), "was trained with the adapter"),
        (lambda r: r.update(adapter=None), "was trained with the adapter None"),
        (lambda r: r.update(schema=9), "record of schema 9"),
        (lambda r: r["result"].update(test_accuracy=1.5), "test_accuracy is 1.5"),
        (lambda r: r["result"].update(test_accuracy=float("nan")), "test_accuracy is nan"),
        (lambda r: r["result"].update(test_accuracy=None), "test_accuracy is None"),
        (lambda r: r["result"].update(test_accuracy=0.9), "is not 520 of 1000 images"),
        (lambda r: r["cost"].pop("step_seconds"), "field 'step_seconds'"),
    ],
)
def test_a_record_that_cannot_be_this_run_is_refused(made, change, message):
    study_path, runs, output = made
    rewrite(runs, change)
    with pytest.raises(UserError, match=message):
        aggregate(study_path, runs, output)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r["result"].update(test_images=500, test_correct=260), "test images differ"),
        (lambda r: r["result"].update(classes=9), "classes differ"),
        (lambda r: r["provenance"].update(backbone_sha256="0"), "weights differ"),
    ],
)
def test_runs_that_cannot_be_compared_are_refused(made, change, message):
    study_path, runs, output = made
    rewrite(runs, change)
    with pytest.raises(UserError, match=message):
        aggregate(study_path, runs, output)


def test_what_runs_may_differ_in_is_logged(made, caplog):
    study_path, runs, output = made
    rewrite(runs, lambda r: r["provenance"].update(precision="bf16", run_digest="old"))
    with caplog.at_level(logging.WARNING):
        aggregate(study_path, runs, output)
    assert "runs differ in precision: bf16, fp32" in caplog.text
    assert "1 runs were made by another version" in caplog.text


def test_a_study_may_grow_without_its_runs_being_refused(made):
    study_path, runs, output = made
    grown = METHODS | {"lora_r4": CLIP_LORA | {"rank": 4}}
    write_study(study_path, methods=grown)
    aggregate(study_path, runs, output, partial=True)
    assert len(output.read_text().splitlines()) == 27


def test_the_command_reports_a_fault_in_one_line(made, capsys):
    study_path, runs, output = made
    (runs / RUN.folder / "metrics.json").write_text("{")
    options = ["--study", str(study_path), "--runs", str(runs), "--output", str(output)]
    assert main(["aggregate", *options]) == 1
    message = capsys.readouterr().err
    assert "seed2/metrics.json: not a readable JSON file" in message
    assert "Traceback" not in message
