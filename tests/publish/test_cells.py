from math import isnan

import pandas as pd
import pytest

from blocklora.errors import UserError
from blocklora.publish.cells import (
    measured_cells,
    paired_differences,
    published_cells,
)
from blocklora.publish.results import load_results
from blocklora.study.run import Run
from blocklora.study.study import load_study
from tests.publish.samples import PAPER, made_results, write_study

BACKBONE = "ViT-B-16-quickgelu"
# Percent, by dataset, for seeds 1 to 3 of block_lora with 4 shots.
KNOWN = {"eurosat": [80.0, 81.0, 85.0], "dtd": [60.0, 62.0, 61.0]}


def accuracy(run):
    if (run.method, run.shots) == ("block_lora", 4):
        return KNOWN[run.dataset][run.seed - 1] / 100
    return {"zero_shot": 0.4, "clip_lora": 0.5, "block_lora": 0.6}[run.method]


def cell(results, method, shots, dataset):
    cells = measured_cells(results).set_index(["method", "shots", "dataset"])
    return cells.loc[(method, shots, dataset)]


def test_cells_hold_mean_and_standard_deviation_over_seeds(tmp_path):
    found = cell(made_results(tmp_path, accuracy), "block_lora", 4, "eurosat")
    assert found["mean"] == pytest.approx(82)
    assert found["std"] == pytest.approx(7**0.5)
    assert (found["seeds"], found["expected_seeds"], found["kind"]) == (3, 3, "measured")


def test_the_average_is_taken_per_seed(tmp_path):
    found = cell(made_results(tmp_path, accuracy), "block_lora", 4, "average")
    averages = [70.0, 71.5, 73.0]
    assert found["mean"] == pytest.approx(71.5)
    assert found["std"] == pytest.approx(pd.Series(averages).std())


def test_zero_shot_is_one_run_without_spread(tmp_path):
    found = cell(made_results(tmp_path, accuracy), "zero_shot", 0, "dtd")
    assert (found["mean"], found["seeds"], found["expected_seeds"]) == (pytest.approx(40), 1, 1)
    assert isnan(found["std"])


def test_an_average_needs_every_dataset(tmp_path):
    missing = [Run(BACKBONE, "dtd", "block_lora", 4, seed) for seed in (1, 2, 3)]
    results = made_results(tmp_path, accuracy, missing)
    assert isnan(cell(results, "block_lora", 4, "dtd")["mean"])
    assert cell(results, "block_lora", 4, "eurosat")["mean"] == pytest.approx(82)
    assert isnan(cell(results, "block_lora", 4, "average")["mean"])
    assert results.missing == tuple(missing)


def test_an_average_is_over_the_seeds_that_have_every_dataset(tmp_path):
    results = made_results(tmp_path, accuracy, [Run(BACKBONE, "dtd", "block_lora", 4, 1)])
    found = cell(results, "block_lora", 4, "average")
    assert (found["mean"], found["seeds"]) == (pytest.approx((71.5 + 73) / 2), 2)


def test_a_run_without_an_accuracy_counts_as_missing(tmp_path):
    results = made_results(tmp_path, accuracy)
    frame = pd.read_csv(results.path("runs"))
    chosen = (frame["method"] == "block_lora") & (frame["shots"] == 4) & (frame["seed"] == 3)
    frame.loc[chosen, "test_accuracy"] = float("nan")
    frame.to_csv(results.path("runs"), index=False)
    again = load_results(results.study.path, results.folder)
    assert {run.folder for run in again.missing} == {
        f"{BACKBONE}/{dataset}/block_lora/4shot/seed3" for dataset in KNOWN
    }
    assert cell(again, "block_lora", 4, "eurosat")["mean"] == pytest.approx(80.5)


def test_runs_that_the_study_no_longer_names_are_left_out(tmp_path):
    results = made_results(tmp_path, accuracy)
    write_study(results.study.path, seeds=[1, 2])
    again = load_results(results.study.path, results.folder)
    assert set(again.runs["seed"]) == {0, 1, 2}
    assert again.missing == ()


def test_an_aggregate_with_a_run_twice_is_refused(tmp_path):
    results = made_results(tmp_path, accuracy)
    with results.path("runs").open("a") as stream:
        stream.write(results.path("runs").read_text().splitlines()[-1] + "\n")
    with pytest.raises(UserError, match="is listed twice"):
        _ = load_results(results.study.path, results.folder).runs


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", "\x00"])
def test_a_file_that_is_no_aggregate_is_refused(tmp_path, text):
    path = tmp_path / "runs.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=r"runs\.csv"):
        _ = load_results(write_study(tmp_path / "made.yaml"), tmp_path).runs


def test_words_for_accuracies_are_refused(tmp_path):
    results = made_results(tmp_path, accuracy)
    frame = pd.read_csv(results.path("runs")).astype({"test_accuracy": object})
    frame.loc[3, "test_accuracy"] = "high"
    frame.to_csv(results.path("runs"), index=False)
    with pytest.raises(UserError, match="holds words"):
        _ = load_results(results.study.path, results.folder).runs


def test_a_folder_is_no_aggregate(tmp_path):
    (tmp_path / "runs.csv").mkdir()
    with pytest.raises(UserError, match=r"runs\.csv: cannot be read"):
        _ = load_results(write_study(tmp_path / "made.yaml"), tmp_path).runs


def test_results_need_their_folder(tmp_path):
    with pytest.raises(UserError, match="none: no such folder of results"):
        load_results(write_study(tmp_path / "made.yaml"), tmp_path / "none")


def test_differences_are_paired_by_dataset_shots_and_seed(tmp_path):
    results = made_results(tmp_path, accuracy, [Run(BACKBONE, "dtd", "clip_lora", 4, 1)])
    differences = paired_differences(results, "block_lora", "clip_lora", BACKBONE)
    assert differences.loc[4, "eurosat"] == pytest.approx(82 - 50)
    assert differences.loc[4, "dtd"] == pytest.approx((62 + 61) / 2 - 50)  # without seed 1
    assert differences.loc[1].tolist() == pytest.approx([10, 10])


def test_published_averages_belong_to_the_eleven_datasets_only(tmp_path):
    paper = published_cells(load_study(PAPER), BACKBONE)
    few = published_cells(load_study(write_study(tmp_path / "made.yaml")), BACKBONE)

    def average(cells):
        chosen = cells[(cells["dataset"] == "average") & (cells["method"] == "CLIP-LoRA")]
        return chosen[chosen["shots"] == 4].iloc[0]

    # arXiv 2405.18541v2, Table 3: average 77.4; EuroSAT 84.9, DTD 63.8.
    assert (average(paper)["mean"], average(paper)["kind"]) == (77.4, "published")
    assert average(few)["mean"] == pytest.approx((84.9 + 63.8) / 2)
    assert average(few)["kind"] == "derived"


def test_a_miniature_has_no_published_numbers():
    mini = load_study(PAPER.with_name("mini.yaml"))
    assert published_cells(mini, next(iter(mini.backbones))).empty
