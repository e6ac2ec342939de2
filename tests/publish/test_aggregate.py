import csv
import json
import logging

import pytest

from blocklora.cli import main
from blocklora.errors import UserError
from blocklora.runs.aggregate import aggregate
from blocklora.runs.predictions import Predictions, read_predictions, write_predictions
from blocklora.study.run import Run, Test
from blocklora.study.study import load_study
from tests.publish.samples import CLIP_LORA, METHODS, write_records, write_study

RUN = Run("ViT-B-16-quickgelu", "dtd", "block_lora", 4, 2)
FACTS = (
    *("run", "dataset", "part", "classnames", "key", "test_digest", "backbone_sha256"),
    *("seconds", "device_name", "precision", "engine"),
)


@pytest.fixture
def made(tmp_path):
    path = write_study(tmp_path / "made.yaml")
    runs = write_records(load_study(path), tmp_path / "runs", lambda run: 0.5 + run.seed / 100)
    return path, runs, tmp_path / "runs.csv"


TEST = Test(RUN, "dtd")


def rewrite(runs, change, run=RUN):
    path = runs / run.folder / "fit.json"
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))
    return path


def write_again(runs, change=None, **arrays):
    """Write the predictions of a test with other facts or arrays."""
    path = runs / TEST.file
    found = read_predictions(path)
    facts = dict(found.facts)
    if change is not None:
        change(facts)
    values = {name: getattr(found, name) for name in ("label", "predicted", "probability")}
    write_predictions(path, Predictions(**values | arrays, facts=facts))


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


def test_missing_runs_are_an_error_that_lists_them(made):
    study_path, runs, output = made
    (runs / RUN.folder / "fit.json").unlink()
    with pytest.raises(UserError, match=f"1 of 26 runs are missing: {RUN.folder}; .*--partial"):
        aggregate(study_path, runs, output)
    assert not output.exists()


def test_partial_aggregates_log_the_missing_runs(made, caplog):
    study_path, runs, output = made
    (runs / RUN.folder / "fit.json").unlink()
    with caplog.at_level(logging.WARNING):
        aggregate(study_path, runs, output, partial=True)
    assert RUN.folder in caplog.text
    assert len(output.read_text().splitlines()) == 26


@pytest.mark.parametrize("text", ["", '{"schema": 1, "run"', "[]", "\x00\x01", '{"schema": 1}'])
def test_a_corrupt_record_is_named(made, text):
    study_path, runs, output = made
    path = runs / RUN.folder / "fit.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"seed2/fit\.json"):
        aggregate(study_path, runs, output)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r["run"].update(seed=3), "for seed 3, but its folder is for seed 2"),
        (lambda r: r["method"].update(rank=8), "was fitted with"),
        (lambda r: r.update(method=None), "was fitted with None"),
        (lambda r: r.update(schema=9), "record has schema 9"),
        (lambda r: r["cost"].update(training_seconds=-1), "training_seconds is -1, not a time"),
        (lambda r: r["cost"].update(training_seconds=None), "training_seconds is None"),
        (lambda r: r["cost"].pop("training_seconds"), "field 'training_seconds'"),
        (lambda r: r["provenance"].pop("fit_digest"), "field 'fit_digest'"),
        (lambda r: r["provenance"].pop("key"), "field 'key'"),
    ],
)
def test_a_record_that_cannot_be_this_run_is_refused(made, change, message):
    study_path, runs, output = made
    rewrite(runs, change)
    with pytest.raises(UserError, match=message):
        aggregate(study_path, runs, output)


def test_a_value_that_older_records_lack_is_an_empty_cell(made):
    study_path, runs, output = made
    rewrite(runs, lambda r: r["cost"].pop("step_seconds"))
    aggregate(study_path, runs, output)
    rows = [row for row in csv.DictReader(output.open()) if row["method"] != "zero_shot"]
    assert sorted({row["step_seconds"] for row in rows}) == ["", "0.016"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f["run"].update(seed=3), "for seed 3, but its folder is for seed 2"),
        (lambda f: f.update(dataset="eurosat"), "for dataset 'eurosat', but its folder is for"),
        (lambda f: f.update(part="train"), "for part 'train', but its folder is for part 'test'"),
        (lambda f: f.update(classnames=["one"]), "there are 1 classes, but a label is outside"),
        *((lambda f, k=key: f.pop(k), f"field '{key}'") for key in FACTS),
    ],
)
def test_predictions_that_cannot_be_of_this_run_are_refused(made, change, message):
    study_path, runs, output = made
    write_again(runs, change)
    with pytest.raises(UserError, match=message):
        aggregate(study_path, runs, output)


@pytest.mark.parametrize("content", [b"", b"{}", b"\x00" * 99])
def test_damaged_predictions_are_named(made, content):
    study_path, runs, output = made
    (runs / TEST.file).write_bytes(content)
    with pytest.raises(UserError, match=r"tests/dtd/test\.safetensors"):
        aggregate(study_path, runs, output)


def half(runs):
    found = read_predictions(runs / TEST.file)
    arrays = {n: getattr(found, n)[:500] for n in ("label", "predicted", "probability")}
    write_again(runs, **arrays)


def other_labels(runs):
    write_again(runs, label=read_predictions(runs / TEST.file).label[::-1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (half, "numbers of test images differ"),
        (other_labels, "labels of test images differ"),
        (
            lambda runs: write_again(runs, lambda f: f["classnames"].append("more")),
            "class names differ",
        ),
        (
            lambda runs: write_again(runs, lambda f: f.update(backbone_sha256="0")),
            "weights differ",
        ),
    ],
)
def test_runs_that_cannot_be_compared_are_refused(made, change, message):
    study_path, runs, output = made
    change(runs)
    with pytest.raises(UserError, match=message):
        aggregate(study_path, runs, output)


def test_allowed_differences_between_runs_are_logged(made, caplog):
    study_path, runs, output = made
    write_again(runs, lambda facts: facts.update(precision="bf16", test_digest="old"))
    with caplog.at_level(logging.WARNING):
        aggregate(study_path, runs, output)
    assert [record.getMessage() for record in caplog.records] == [
        "runs differ in precision: bf16, fp32",
        "1 runs were made by another version of the study or of the code",
    ]


def test_methods_with_code_of_their_own_are_no_difference(made, caplog):
    study_path, runs, output = made
    rewrite(runs, lambda record: record["provenance"].update(code_digest="of another method"))
    with caplog.at_level(logging.WARNING):
        aggregate(study_path, runs, output)
    assert caplog.text == ""


def test_a_study_may_grow_without_its_runs_being_refused(made):
    study_path, runs, output = made
    grown = METHODS | {"lora_r4": CLIP_LORA | {"rank": 4}}
    write_study(study_path, methods=grown)
    aggregate(study_path, runs, output, partial=True)
    assert len(output.read_text().splitlines()) == 27


def test_the_command_reports_a_fault_in_one_line(made, capsys):
    study_path, runs, _ = made
    (runs / RUN.folder / "fit.json").write_text("{")
    options = ["--study", str(study_path), "--results", str(runs.parent)]
    assert main(["aggregate", *options]) == 1
    message = capsys.readouterr().err
    assert "seed2/fit.json: not a readable JSON file" in message
    assert "Traceback" not in message
