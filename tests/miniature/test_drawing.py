"""The drawn datasets hold what the registry says, and the digits are the real ones."""

import os
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.optimize import linear_sum_assignment
from sklearn.datasets import load_digits

from blocklora.data.registry import load_registry
from blocklora.errors import UserError
from blocklora.miniature import datasets
from blocklora.miniature.captions import NAMES, Pairs, all_captions
from blocklora.miniature.datasets import DATASETS, DIGITS, draw_dataset, draw_once
from blocklora.miniature.shapes import FIGURES, OBJECTS, draw_masks
from blocklora.study.study import load_study

SETTINGS = load_study(Path(__file__).parents[2] / "studies/mini.yaml").miniature


def digest(folder: Path) -> str:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    named = b"".join(str(f.relative_to(folder)).encode() + f.read_bytes() for f in files)
    return sha256(named).hexdigest()


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("drawn")
    for name in DATASETS:
        (folder / name).mkdir()
        draw_dataset(name, folder / name, SETTINGS)
    return folder


@pytest.mark.parametrize("name", DATASETS)
def test_drawn_datasets_have_the_classes_and_images_of_the_registry(drawn, name):
    entry = load_registry()[name]
    for split, images in entry.images.items():
        assert len(list((drawn / name / split).iterdir())) == entry.classes
        pictures = [Image.open(path) for path in (drawn / name / split).rglob("*.png")]
        assert len(pictures) == images
        assert {(picture.size, picture.mode) for picture in pictures} == {((32, 32), "RGB")}


def test_equal_settings_draw_equal_files_and_another_seed_other_ones(drawn, tmp_path):
    for folder, seed in (("again", SETTINGS.seed), ("other", SETTINGS.seed + 1)):
        (tmp_path / folder).mkdir()
        draw_dataset("mini_objects", tmp_path / folder, replace(SETTINGS, seed=seed))
    assert digest(tmp_path / "again") == digest(drawn / "mini_objects")
    assert digest(tmp_path / "other") != digest(drawn / "mini_objects")


def test_every_digit_of_scikit_learn_is_there_once_in_the_class_of_its_value(drawn):
    digits = load_digits()
    for value, name in enumerate(DIGITS):
        pictures = (drawn / "mini_digits").glob(f"*/digit_{name}/*.png")
        found = [np.asarray(Image.open(p).convert("L").crop((4, 4, 28, 28)).reduce(3)) / 255
                 for p in pictures]  # fmt: skip
        real = digits.images[digits.target == value] / 16
        distance = ((np.stack(found)[:, None] - real) ** 2).mean((2, 3))
        assert len(found) == len(real)
        assert distance[linear_sum_assignment(distance)].max() < 0.01


def test_no_caption_names_an_object_or_a_digit():
    words = {word.strip(".") for caption in all_captions() for word in caption.split()}
    assert words.isdisjoint({*OBJECTS, *DIGITS, "digit"})


def test_a_picture_is_captioned_by_what_it_shows():
    batch = (pairs := Pairs(32, np.random.default_rng(0))).draw(200)
    for caption, figure in zip(pairs.captions(batch), batch.figures, strict=True):
        assert caption.removesuffix(".").endswith(NAMES[figure])


@pytest.mark.parametrize("size", [32, 64])
def test_nearly_all_figures_are_seen_whole(size):
    """A corner of a large, slanted and turned figure may lie outside, rarely more than that."""
    masks = {
        name: draw_masks(name, 50, size, 60, np.random.default_rng(0)) > 127 for name in FIGURES
    }
    for name, shown in masks.items():
        border = np.concatenate([shown[:, 0], shown[:, -1], shown[:, :, 0], shown[:, :, -1]], 1)
        assert (border.mean(axis=1) < 0.2).mean() >= 0.9, name
        low, high = np.quantile(shown.mean(axis=(1, 2)), [0.05, 0.95])
        assert 0.01 < low < high < 0.7, name


def test_a_dataset_that_is_not_drawn_is_refused(tmp_path):
    with pytest.raises(UserError, match="imagenet: no such drawn dataset"):
        draw_dataset("imagenet", tmp_path, SETTINGS)


def test_drawn_datasets_lie_in_a_folder_named_by_settings_and_code(tmp_path, monkeypatch):
    """So that studies share them; what is there is not drawn anew."""
    calls = []

    def painter(name, folder, settings):
        calls.append(settings.seed)
        (folder / "train").mkdir()
        (folder / "train" / f"{name}{settings.seed}.png").touch()
        if len(calls) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(datasets, "draw_dataset", painter)
    one, two = (replace(SETTINGS, seed=seed) for seed in (1, 2))
    with pytest.raises(KeyboardInterrupt):
        draw_once("mini", tmp_path, one)
    first = draw_once("mini", tmp_path, one)
    second = draw_once("mini", tmp_path, two)
    again = draw_once("mini", tmp_path, one)
    assert first == again
    assert calls == [1, 1, 2]
    assert first.origin == "drawn"
    for source, number in ((first, 1), (second, 2)):
        assert os.listdir(f"{source.image_root}/train") == [f"mini{number}.png"]
    monkeypatch.setattr(datasets, "code_digest", lambda name: "other code")
    assert draw_once("mini", tmp_path, one).image_root != first.image_root
    with pytest.raises(UserError, match="needs `miniature` settings"):
        draw_once("mini", tmp_path, None)
