"""Accuracy per class and confusions, counted from predictions."""

from math import isnan

import numpy as np
import pytest
from PIL import Image

from blocklora.errors import UserError
from blocklora.publish.figures.canvas import write_drawing
from blocklora.publish.figures.confusions import confusions_figure
from blocklora.publish.results import load_results
from blocklora.publish.tables.classes import class_frame, per_class_table
from blocklora.study.run import Run
from tests.publish.samples import BACKBONE, CLIP_LORA, METHODS, write_predicted, write_study

NAMES = ["a_cat", "a dog", "a fox", "nothing"]
LABELS = [0] * 4 + [1] * 4 + [2] * 2  # no image of the last class


def predicted(test, labels):
    """Cats are taken for dogs by seed 1, foxes for cats by all that are trained."""
    taken = labels.copy()
    taken[(labels == 0) & (test.run.seed == 1)] = 1
    taken[(labels == 2) & (test.run.shots > 0)] = 0
    return taken


@pytest.fixture
def results(tmp_path):
    made = load_results(write_study(tmp_path / "made.yaml"), tmp_path)
    write_predicted(made, predicted, LABELS, NAMES)
    return made


def rows(table):
    return [[cell.text for cell in row] for section in table.sections for row in section.rows]


def test_class_frame_has_every_class_of_every_test_of_the_largest_shot_count(results):
    frame = class_frame(results)
    columns = [
        "backbone",
        "dataset",
        "method",
        "shots",
        "seed",
        "class",
        "images",
        "correct",
        "accuracy",
    ]
    assert list(frame) == columns
    assert set(frame["shots"]) == {0, 4}
    assert len(frame) == 2 * (1 + 2 * 3) * len(NAMES)
    cell = frame[(frame["dataset"] == "dtd") & (frame["method"] == "clip_lora")]
    first = cell[cell["seed"] == 1].set_index("class")
    assert first["images"].tolist() == [4, 4, 2, 0]
    assert first["correct"].tolist() == [0, 4, 0, 0]
    assert first["accuracy"].tolist()[:3] == [0, 1, 0]
    assert isnan(first["accuracy"]["nothing"])


def test_per_class_table_ranks_classes_over_all_seeds(results):
    table = per_class_table(results)
    assert [section.title for section in table.sections] == [
        f"{BACKBONE}, EuroSAT",
        f"{BACKBONE}, DTD",
    ]
    found = rows(table)
    assert found[0][:4] == [
        "CLIP zero-shot", "a cat 100.0, a dog 100.0, a fox 100.0", "a fox 100.0", "3",
    ]  # fmt: skip
    assert found[1] == [
        "CLIP-LoRA", "a fox 0.0, a cat 66.7, a dog 100.0", "a dog 100.0", "3", "55.6", "66.7",
    ]  # fmt: skip
    assert found[1] == [found[1][0], *found[2][1:]]


def test_classes_of_one_name_are_told_apart_by_their_labels(results):
    write_predicted(results, predicted, LABELS, ["crane", "crane", "a fox", "nothing"])
    assert rows(per_class_table(results))[1][1] == "a fox 0.0, crane 66.7, crane 100.0"


def test_per_class_table_names_the_runs_without_predictions(tmp_path):
    made = load_results(write_study(tmp_path / "made.yaml"), tmp_path)
    gone = Run(BACKBONE, "dtd", "clip_lora", 4, 2)
    write_predicted(made, predicted, LABELS, NAMES, missing=[gone])
    table = per_class_table(made)
    assert any(gone.folder in note for note in table.notes)
    assert len(table.data) == (2 * 7 - 1) * len(NAMES)


@pytest.mark.parametrize("names", [[], ["one"]])
def test_predictions_without_class_names_are_refused(results, names):
    write_predicted(results, predicted, LABELS, names)
    with pytest.raises(UserError, match=r"test\.safetensors: its labels have no class names"):
        per_class_table(results)


def test_confusion_matrices_are_shares_of_the_images_of_a_class(results):
    drawing = confusions_figure(results)
    panels = [axes for axes in drawing.figure.axes if axes.images]
    assert len(panels) == 2 * 3
    assert [axes.get_title() for axes in panels[:3]] == [
        "CLIP zero-shot", "CLIP-LoRA", "Block-LoRA",
    ]  # fmt: skip
    matrix = np.asarray(panels[1].images[0].get_array())
    assert matrix[:3, :3] == pytest.approx(np.array([[2 / 3, 1 / 3, 0], [0, 1, 0], [1, 0, 0]]))
    data = drawing.data.set_index(["dataset", "method", "label", "predicted"])
    assert data.loc[("dtd", "clip_lora", 0, "a dog"), "images"] == 4  # of seed 1
    assert data.loc[("dtd", "clip_lora", 0, "a dog"), "share"] == pytest.approx(1 / 3)


def test_a_class_without_images_that_others_are_taken_for_has_its_column(results):
    write_predicted(results, lambda test, labels: np.full_like(labels, 3), LABELS, NAMES)
    drawing = confusions_figure(results)
    matrix = np.asarray(drawing.figure.axes[0].images[0].get_array())
    assert matrix.tolist() == [[0, 0, 0, 1]] * 3 + [[0, 0, 0, 0]]


def test_confusions_need_predictions_of_the_backbone_and_its_name(tmp_path):
    backbones = {BACKBONE: {"source": "openai"}, "ViT-B-32-quickgelu": {"source": "openai"}}
    made = load_results(write_study(tmp_path / "made.yaml", backbones=backbones), tmp_path)
    others = [run for run in made.study.runs() if run.backbone != BACKBONE]
    write_predicted(made, predicted, LABELS, NAMES, missing=others)
    assert set(confusions_figure(made, BACKBONE).data["dataset"]) == {"dtd", "eurosat"}
    for name, message in {
        "ViT-B-32-quickgelu": "has no predictions of ViT-B-32-quickgelu; finish its runs",
        "": "has no backbone , only",
        "ViT-B-9": f"has no backbone ViT-B-9, only {BACKBONE}, ViT-B-32-quickgelu",
        None: "name one backbone with --backbone",
    }.items():
        with pytest.raises(UserError, match=message):
            confusions_figure(made, name)


def test_confusions_of_many_classes_are_listed(results, tmp_path):
    names = [f"class_{number}" for number in range(30)]
    labels = np.arange(30).repeat(4)

    def next_one(test, label):
        return np.where((label < 8) & (np.arange(len(label)) % 4 <= label // 4), label + 1, label)

    write_predicted(results, next_one, labels, names)
    drawing = confusions_figure(results)
    listed = [text.get_text() for text in drawing.figure.axes[0].texts]
    assert listed[:4] == ["class 4 → class 5", "50%", "class 5 → class 6", "50%"]
    assert len(listed) == 2 * 5
    write_drawing(drawing, [tmp_path / "confusions.png"])
    assert Image.open(tmp_path / "confusions.png").width > 1000


def test_confusions_of_more_methods_than_fit_are_refused(tmp_path):
    methods = METHODS | {f"lora_{n}": CLIP_LORA | {"alpha": n + 2} for n in range(2)}
    results = load_results(write_study(tmp_path / "made.yaml", methods=methods), tmp_path)
    with pytest.raises(UserError, match="has 5 methods, 4 fit side by side"):
        confusions_figure(results)
