import csv
import random
import re

import pytest

from blocklora.data.registry import load_registry
from blocklora.errors import UserError
from blocklora.publish.published_accuracies import REFERENCE, dataset_label, names
from blocklora.publish.render import render
from blocklora.publish.tables.fewshot import fewshot_table
from blocklora.study.run import Run
from blocklora.study.study import load_study
from tests.publish.samples import PAPER, made_results

BACKBONE = "ViT-B-16-quickgelu"
# Name in published_results.csv: what tables print.
DATASETS = {
    "ImageNet": "ImageNet",
    "SUN397": "SUN397",
    "Aircraft": "FGVC-Aircraft",
    "EuroSAT": "EuroSAT",
    "Cars": "Stanford Cars",
    "Food101": "Food-101",
    "Pets": "Oxford-IIIT Pets",
    "Flowers102": "Oxford Flowers 102",
    "Caltech101": "Caltech-101",
    "DTD": "DTD",
    "UCF101": "UCF101",
    "average": "average",
}
CITED = "arXiv 2405.18541v2 Table 3"


@pytest.fixture(scope="module")
def paper(tmp_path_factory):
    generator = random.Random(0)
    accuracies = {run: generator.uniform(0.2, 0.99) for run in load_study(PAPER).runs()}
    folder = tmp_path_factory.mktemp("paper")
    return made_results(folder, accuracies.__getitem__, study_path=PAPER)


@pytest.fixture(scope="module")
def source():
    """The published accuracies of ViT-B/16 as the file has them, read without the project."""
    with (REFERENCE / "published_results.csv").open(encoding="utf-8") as stream:
        rows = [row for row in csv.DictReader(stream) if row["backbone"] == "ViT-B/16"]
    return {
        (row["method"], int(row["shots"]), row["dataset"]): row["accuracy_percent"] for row in rows
    }


def grid(table):
    """Return the cells of the Markdown form by (row number, column), and its row labels."""
    lines = [line for line in render(table, ".md").splitlines() if line.startswith("| ")]
    clean = [re.sub(r"\*\*|</?ins>|\\", "", line) for line in lines]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in clean]
    header, body = rows[0], [row for row in rows if row[0] not in (rows[0][0], ":--")]
    return [dict(zip(header, row, strict=True)) for row in body]


@pytest.mark.parametrize("shots", [1, 2, 4, 8, 16])
def test_published_rows_equal_the_source_cell_by_cell(paper, source, shots):
    rows = grid(fewshot_table(paper, shots, published=True))
    published = {row["method"]: row for row in rows if row["origin"].startswith("published")}
    short = names()["published"]
    compared = 0
    for (method, count, dataset), text in source.items():
        method = short.get(method, method)
        if method in published and count in (0, shots):
            assert published[method][DATASETS[dataset]] == text
            compared += 1
    empty = sum(row[name] == "—" for row in published.values() for name in DATASETS.values())
    assert compared + empty == len(published) * len(DATASETS)
    # Every method with numbers on most datasets is there: 11 of the CLIP-LoRA paper, 4 of the
    # PromptSRC paper, a rerun, two zero-shot rows, and LP++, which has 16 shots only.
    assert len(published) == 18 + (shots == 16)


def test_measured_rows_equal_the_records_cell_by_cell(paper):
    names = dict(zip(paper.study.datasets, DATASETS.values(), strict=False))
    rows = grid(fewshot_table(paper, 8, published=True))
    measured = {row["method"]: row for row in rows if row["origin"] == "measured"}
    assert list(measured) == ["CLIP zero-shot", "CLIP-LoRA", "Block-LoRA"]
    runs = paper.runs[paper.runs["shots"] == 8]
    for method, label in (("clip_lora", "CLIP-LoRA"), ("block_lora", "Block-LoRA")):
        chosen = runs[runs["method"] == method]
        values = {
            dataset: 100 * group for dataset, group in chosen.groupby("dataset").test_accuracy
        }
        for dataset, accuracies in values.items():
            expected = f"{accuracies.mean():.1f} ± {accuracies.std():.1f}"
            assert measured[label][names[dataset]] == expected
        averages = 100 * chosen.groupby("seed").test_accuracy.mean()
        expected = f"{averages.mean():.1f} ± {averages.std():.1f}"
        assert measured[label]["average"] == expected


def test_each_published_row_cites_its_source(paper):
    table = fewshot_table(paper, 4, published=True)
    notes = dict(re.findall(r"^\[(\d+)\] (.*)$", "\n".join(table.notes), re.MULTILINE))
    origins = {row["method"]: row["origin"] for row in grid(table)[3:]}
    assert notes[re.search(r"\d+", origins["CLIP-LoRA"]).group()].startswith(CITED)
    assert "arXiv 2307.06948" in notes[re.search(r"\d+", origins["PromptSRC"]).group()]


def test_a_row_of_two_sources_cites_both(paper):
    rows = grid(fewshot_table(paper, 16, published=True))
    origin = next(row["origin"] for row in rows if row["method"] == "LP++")
    assert len(re.findall(r"\[\d+\]", origin)) == 2


def test_best_and_second_best_are_those_of_the_numbers(paper):
    table = fewshot_table(paper, 16, published=True)
    data = table.data
    for _, column in data.groupby("dataset"):
        rounded = column["accuracy_percent"].round(1)
        ranking = sorted(set(rounded.dropna()), reverse=True)
        assert set(rounded[column["mark"] == "best"]) == {ranking[0]}
        assert set(rounded[column["mark"] == "second"]) == {ranking[1]}
        assert (rounded == ranking[0]).sum() == (column["mark"] == "best").sum()


def test_ties_share_the_mark(tmp_path):
    results = made_results(tmp_path, lambda run: 0.5 if run.shots else 0.3)
    section = fewshot_table(results, 4).sections[0]
    assert [[cell.mark for cell in row[2:]] for row in section.rows] == [
        ["second"] * 3,
        ["best"] * 3,
        ["best"] * 3,
    ]


def test_missing_runs_are_dashes_and_are_listed(tmp_path):
    gone = [Run(BACKBONE, "dtd", "block_lora", 4, seed) for seed in (1, 2, 3)]
    partly = Run(BACKBONE, "eurosat", "clip_lora", 4, 2)
    results = made_results(tmp_path, lambda run: 0.5, [*gone, partly])
    table = fewshot_table(results, 4)
    _, lora, block = grid(table)
    assert (block["DTD"], block["average"], block["EuroSAT"]) == ("—", "—", "50.0 ± 0.0")
    assert (lora["EuroSAT"], lora["average"]) == ("50.0 ± 0.0 (2)", "50.0 ± 0.0 (2)")
    notes = "\n".join(table.notes)
    assert "Missing runs (4)" in notes
    assert all(run.folder in notes for run in [*gone, partly])
    assert fewshot_table(results, 1).notes == []


def test_a_single_seed_has_no_spread_and_says_so(tmp_path):
    table = fewshot_table(made_results(tmp_path, lambda run: 0.5, seeds=[7]), 4)
    assert grid(table)[1]["DTD"] == "50.0"
    assert any("single seed" in note for note in table.notes)


def test_a_study_without_runs_still_makes_a_table(tmp_path):
    every = list(made_results(tmp_path, lambda run: 0.5).study.runs())
    (tmp_path / "empty").mkdir()
    table = fewshot_table(made_results(tmp_path / "empty", lambda run: 0.5, every), published=True)
    assert grid(table)[0]["DTD"] == "—"
    assert any("Missing runs (26)" in note for note in table.notes)


def test_a_derived_average_is_marked_as_derived(tmp_path):
    table = fewshot_table(made_results(tmp_path, lambda run: 0.5), 4, published=True)
    row = next(row for row in grid(table) if row["method"] == "PromptSRC")
    assert row["average"] == f"{(86.30 + 65.53) / 2:.1f}*"
    assert any(note.startswith("* Derived") for note in table.notes)
    data = table.data[table.data["method"] == "PromptSRC"]
    kinds = dict(zip(data["dataset"], data["kind"], strict=True))
    assert kinds == {"eurosat": "published", "dtd": "published", "average": "derived"}


def test_all_shot_counts_stand_in_one_table_as_sections(paper):
    table = fewshot_table(paper)
    titles = [section.title for section in table.sections]
    assert titles[0] == "ViT-B/16, 1 shot per class"
    assert titles[1:] == [f"ViT-B/16, {count} shots per class" for count in (2, 4, 8, 16)]
    assert set(table.data["kind"]) == {"measured"}


def test_an_unknown_shot_count_is_refused(paper):
    with pytest.raises(UserError, match="has no 3 shots, only 1, 2, 4, 8, 16"):
        fewshot_table(paper, 3)


def test_datasets_are_printed_by_the_display_names_of_the_registry(tmp_path):
    mini = made_results(tmp_path, lambda run: 0.5, study_path=PAPER.with_name("mini.yaml"))
    labels = [load_registry()[name].display_name for name in mini.study.datasets]
    assert fewshot_table(mini).columns == ["method", "origin", *labels, "average"]


def test_the_readme_prints_datasets_as_the_table_does(tmp_path):
    mini = made_results(tmp_path, lambda run: 0.5, study_path=PAPER.with_name("mini.yaml"))
    shown = fewshot_table(mini, 4).columns[2:]
    readme = (PAPER.parents[1] / "README.md").read_text(encoding="utf-8")
    assert f"| 4 shots | {' | '.join(shown)} |" in readme


def test_a_dataset_of_the_users_is_printed_by_its_name():
    assert dataset_label("my_leaves") == "my_leaves"
