from math import nan

import pytest

from blocklora.cli import main
from blocklora.errors import UserError
from blocklora.publish.render import render
from blocklora.publish.results import load_results
from blocklora.publish.tables.ablation import ablation_table
from blocklora.publish.tables.cost import cost_table, efficiency_table
from blocklora.publish.tables.differences import (
    calibrate,
    calibration_table,
    compare_pairs,
    statistics_table,
)
from blocklora.publish.tables.theory import (
    bounds_table,
    compression_table,
    overlaps_table,
    spectra_table,
)
from blocklora.study.run import Run
from blocklora.study.study import load_study
from tests.publish.samples import (
    BACKBONE,
    CLIP_LORA,
    METHODS,
    PAPER,
    made_results,
    write_study,
    write_theory,
)

# CLIP-LoRA, ViT-B/16 (arXiv 2405.18541v2, Table 3), by dataset and shots.
PUBLISHED = {
    ("eurosat", 1): 72.3,
    ("dtd", 1): 54.3,
    ("eurosat", 4): 84.9,
    ("dtd", 4): 63.8,
}
PAIR = [("block_lora", "clip_lora")]


@pytest.fixture
def results(tmp_path):
    """Results of a study that has the files of the theory step and no runs."""
    return load_results(write_study(tmp_path / "made.yaml"), write_theory(tmp_path))


def texts(table):
    return [[cell.text for cell in row] for section in table.sections for row in section.rows]


def headed(table):
    """Return the rows as mappings from headings."""
    return [dict(zip(table.columns, row, strict=True)) for row in texts(table)]


def near_published(run):
    """CLIP-LoRA half a point above the published value for seeds 1 to 3 of spread 0.3."""
    if run.method == "zero_shot":
        return 0.4
    value = PUBLISHED[run.dataset, run.shots] + 0.5 + 0.3 * (run.seed - 2)
    return (value - (1.0 if run.method == "block_lora" else 0)) / 100


def test_calibration_is_ours_minus_published_in_standard_errors(tmp_path):
    frame = calibrate(made_results(tmp_path, near_published)).set_index(["dataset", "shots"])
    row = frame.loc["dtd", 4]
    assert (row["measured"], row["published"]) == (pytest.approx(64.3), 63.8)
    assert row["difference"] == pytest.approx(0.5)
    assert row["standard_error"] == pytest.approx(0.3 * (1 / 3 + 1 / 3) ** 0.5)
    assert row["deviation"] == pytest.approx(0.5 / 0.3 / (2 / 3) ** 0.5)


def test_calibration_shows_every_cell_and_their_summary(tmp_path):
    table = calibration_table(made_results(tmp_path, near_published))
    assert texts(table)[0] == ["EuroSAT", "+0.5 (+2.0)", "+0.5 (+2.0)"]
    assert any("Over 4 cells: mean +0.50, mean absolute 0.50" in note for note in table.notes)
    assert any("beyond ±4.3" in note for note in table.notes)


def test_calibration_without_spread_shows_the_difference_alone(tmp_path):
    table = calibration_table(made_results(tmp_path, near_published, seeds=[2]))
    assert texts(table)[1] == ["DTD", "+0.5", "+0.5"]


def test_calibration_needs_the_settings_of_the_paper(tmp_path):
    methods = METHODS | {"clip_lora": CLIP_LORA | {"dropout": 0.5}}
    table = calibration_table(made_results(tmp_path, near_published, methods=methods))
    assert texts(table) == []
    assert table.notes[0].startswith("Nothing to compare")


def test_statistics_compare_block_lora_with_lora_over_datasets(tmp_path):
    def accuracy(run):
        gain = {"eurosat": 0.02, "dtd": -0.01}[run.dataset] * (run.method == "block_lora")
        return 0.5 + gain + 0.01 * run.seed

    results = made_results(tmp_path, accuracy)
    frame = compare_pairs(results, PAIR)
    assert list(frame["shots"]) == ["1", "4", "all"]
    assert frame["difference"].tolist() == pytest.approx([0.5] * 3)
    assert frame["std"].tolist() == pytest.approx([3 / 2**0.5] * 3)
    assert frame["effect_size"].tolist() == pytest.approx([2**0.5 / 6] * 3)
    assert frame["datasets"].tolist() == [2, 2, 2]
    assert frame["holm_p"].isna().tolist() == [False, False, True]
    first = texts(statistics_table(results))[0]
    assert first[:3] == ["1", "2", "+0.50"]


def test_a_single_shot_count_is_not_repeated_as_all(tmp_path):
    table = statistics_table(made_results(tmp_path, lambda run: 0.5, shots=[4]))
    assert [row[0] for row in texts(table)] == ["4"]


def test_statistics_compare_block_lora_with_the_lora_it_merges_into(tmp_path):
    methods = METHODS | {"merged": CLIP_LORA | {"rank": 1, "alpha": 2**0.5}}
    accuracies = {"clip_lora": 0.5, "block_lora": 0.6, "merged": 0.59}
    table = statistics_table(
        made_results(tmp_path, lambda run: accuracies.get(run.method, 0.4), methods=methods)
    )
    assert {section.title: section.rows[0][2].text for section in table.sections} == {
        f"{BACKBONE}: Block-LoRA minus CLIP-LoRA": "+10.00",
        f"{BACKBONE}: Block-LoRA minus merged": "+1.00",
    }


def test_a_missing_dataset_leaves_the_others_comparable(tmp_path):
    gone = [Run(BACKBONE, "dtd", "block_lora", 4, seed) for seed in (1, 2, 3)]
    results = made_results(tmp_path, lambda run: 0.5, gone)
    frame = compare_pairs(results, PAIR).set_index("shots")
    assert frame.loc["4", "datasets"] == 1
    assert frame.loc["all", "datasets"] == 1
    table = statistics_table(results)
    assert texts(table)[1] == ["4", "1", "0.00", *["—"] * 7]
    assert any("Missing runs (3)" in note for note in table.notes)


def test_a_study_without_a_pair_has_an_empty_table_that_says_why(tmp_path):
    methods = {name: METHODS[name] for name in ("zero_shot", "clip_lora")}
    table = statistics_table(made_results(tmp_path, lambda run: 0.5, methods=methods))
    assert texts(table) == []
    assert "The study has no Block-LoRA and LoRA" in table.notes[-1]


def test_cost_shows_what_the_runs_took_beside_what_was_planned(tmp_path):
    write_theory(tmp_path)
    methods = METHODS | {"block_r4": CLIP_LORA | {"rank": 4, "blocks": 4}}
    results = made_results(tmp_path, lambda run: 0.5, methods=methods)
    lora, block, larger = headed(cost_table(results))
    assert lora.items() >= {
        "method": "CLIP-LoRA", "rank r": "2", "blocks n": "1", "parameters": "184,320",
        "of LoRA": "—", "adapter file": "737 kB", "peak memory": "2.18 GB",
        "planned memory": "6.00 GB",
    }.items()  # fmt: skip
    assert block.items() >= {
        "method": "Block-LoRA", "rank r": "2", "blocks n": "2", "parameters": "138,240",
        "of LoRA": "75.0%", "adapter file": "553 kB", "peak memory": "2.14 GB",
        "planned memory": "5.90 GB", "step": "16.0 ms", "longest run": "40.0 s",
        "all runs": "5.00 min",
        "energy": "15.0 Wh",  # 2 datasets × 3 seeds × (1 + 4) shots × 1800 J
    }.items()  # fmt: skip
    assert larger["planned memory"] == "—"  # rank 4 is not among the planned


def test_energy_that_a_run_lacks_leaves_its_method_without(tmp_path):
    write_theory(tmp_path)
    results = made_results(tmp_path, lambda run: 0.5)
    results.runs.loc[results.runs["method"] == "clip_lora", "energy_joules"] = nan
    assert [row["energy"] for row in headed(cost_table(results))] == ["—", "15.0 Wh"]


def test_ablation_marks_the_best_of_each_shot_count(tmp_path):
    methods = METHODS | {
        "lora_r4": CLIP_LORA | {"rank": 4},
        "block_r4_n4": CLIP_LORA | {"rank": 4, "blocks": 4},
        "merged": CLIP_LORA | {"rank": 1, "alpha": 2**0.5},
    }
    accuracies = {"zero_shot": 0.4, "clip_lora": 0.5, "block_lora": 0.6, "lora_r4": 0.7}

    def accuracy(run):
        return accuracies.get(run.method, 0.65)

    table = ablation_table(made_results(tmp_path, accuracy, methods=methods))
    assert [row[:7] for row in texts(table)] == [
        ["CLIP-LoRA", "—", "2", "1", "1", "184,320", "50.0 ± 0.0"],
        ["Block-LoRA", "rank", "2", "2", "1", "138,240", "60.0 ± 0.0"],
        ["merged", "—", "1", "1", "1.414", "92,160", "65.0 ± 0.0"],  # of Block-LoRA above
        ["lora_r4", "—", "4", "1", "1", "368,640", "70.0 ± 0.0"],
        ["block_r4_n4", "rank", "4", "4", "1", "230,400", "65.0 ± 0.0"],
    ]
    marks = [row[-1].mark for row in table.sections[0].rows]
    assert marks == ["", "", "second", "best", "second"]


def test_an_ablation_without_a_run_has_a_dash(tmp_path):
    gone = [run for run in load_study(PAPER).runs() if run.method == "block_lora"]
    table = ablation_table(made_results(tmp_path, lambda run: 0.5, gone))
    assert texts(table)[1] == ["Block-LoRA", "rank", "2", "2", "1", "—", "—", "—"]


def test_bounds_stand_beside_the_measured_gaps(results):
    table = bounds_table(results)
    rows = {row[0]: row[1:] for row in texts(table)}
    assert rows["CLIP-LoRA"] == [
        "4", "184,320", "184,320", "104 to 226", "104 to 226", "1.00", "1.00", "+0.350", "2 of 2"
    ]  # fmt: skip
    assert rows["Block-LoRA"][2:] == [
        "92,160", "90.3 to 196", "73.7 to 160", "0.866", "0.707", "+0.050", "1 of 2"
    ]  # fmt: skip
    assert rows["CLIP-LoRA, B alone"][-2:] == ["—", "—"]


def test_bounds_need_no_gaps(results):
    results.path("gaps").unlink()
    table = bounds_table(results)
    assert {row[-1] for row in texts(table)} == {"—"}


def test_compressed_sizes_are_in_bytes_and_bounds_are_counted(results):
    assert texts(compression_table(results)) == [
        ["CLIP-LoRA", "4", "1.00", "1.50 kB", "3.0", "0.900 to 0.980", "0.950 to 0.990", "2 of 3"],
        ["Block-LoRA", "4", "0.500", "500 B", "0.0", "0.980", "0.784", "0 of 1"],
    ]


def test_spectra_are_summarised_per_tower(results):
    rows = texts(spectra_table(results))
    assert rows[0] == ["CLIP-LoRA", "vision", "4", "1.70", "1.50 to 1.90", "0.600", "0.500", "—"]
    assert [row[-1] for row in rows[2:]] == ["2.00e−05", "1.00e−06"]


def test_overlaps_are_means_per_pair_and_tower(results):
    assert texts(overlaps_table(results)) == [
        ["Block-LoRA and CLIP-LoRA", "vision", "4", "0.800", "0.550", "0.00260"],
        ["Block-LoRA and CLIP-LoRA", "text", "4", "0.800", "0.400", "0.00391"],
    ]


def test_efficiency_shows_the_dataset_with_the_most_classes(results):
    table = efficiency_table(results)
    assert table.sections[0].title == f"{BACKBONE}, ImageNet (1000 classes)"
    rows = texts(table)
    assert rows[0] == [
        "LoRA", "2", "1", "—", "184,320", "749 kB", "1.47 MB", "3,423", "3,423",
        "6.00 GB",
    ]  # fmt: skip
    assert len(table.data) == 6  # the CSV form has the other datasets too


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("bounds", bounds_table),
        ("gaps", bounds_table),
        ("spectra", spectra_table),
        ("overlaps", overlaps_table),
        ("compression", compression_table),
        ("efficiency", efficiency_table),
    ],
)
def test_a_file_without_its_columns_is_refused(results, name, make):
    results.path(name).write_text("backbone,dataset\na,b\n")
    with pytest.raises(UserError, match=rf"{name}\.csv: has no column"):
        make(results)


def test_a_miniature_is_called_one_in_every_caption(tmp_path):
    results = load_results(PAPER.with_name("mini.yaml"), write_theory(tmp_path))
    table = efficiency_table(results)
    assert "A miniature: its numbers are not comparable with any paper's." in table.caption
    assert "Miniature study" in render(table, ".tex")


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (["table", "bounds"], "theory/bounds.csv: no such file"),
        (["table", "cost"], "runs.csv: no such file"),
        (["table", "per-class"], "tests/eurosat/test.safetensors: no such file of predictions"),
        (["table", "cost", "--shots", "4"], "table cost does not take --shots"),
        (["figure", "cost", "--published"], "figure cost does not take --published"),
    ],
)
def test_the_command_says_in_one_line_what_is_wrong(tmp_path, capsys, item, message):
    study_path = write_study(tmp_path / "made.yaml")
    output = tmp_path / "out.csv"
    options = ["--study", str(study_path), "--results", str(tmp_path), "--output", str(output)]
    assert main([*item, *options]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not output.exists()
