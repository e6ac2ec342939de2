"""Few-shot lists against the known answers of the reference implementation."""

import hashlib
import json
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blocklora.data.manifest import LabelledImage
from blocklora.data.registry import PACKAGED, load_registry
from blocklora.data.sampling import draw_shots
from blocklora.data.splits import read_split_file
from blocklora.errors import UserError

KNOWN = json.loads(Path(__file__).with_name("known_answers.json").read_text(encoding="utf-8"))
CASES = [
    (dataset, *map(int, key.split()), answers)
    for dataset, entries in KNOWN.items()
    if dataset != "source"
    for key, answers in entries.items()
]
# Class sizes of the train and val lists where the split file is not at hand, in list order:
# linzhiqiu/cross_modal_adaptation@ac9077e:indices/. Aircraft's official lists share 100 images of
# each variant by turns: train, val and test get 34 of every third variant.
SIZES = {
    "sun397": ([40] * 397, [10] * 397),
    "food101": ([500] * 101, [200] * 101),
    "fgvc_aircraft": (
        [34 if label % 3 == 0 else 33 for label in range(100)],
        [34 if label % 3 == 1 else 33 for label in range(100)],
    ),
}


def by_position(images):
    """Return the images with their position in the list of their split as path."""
    counts = {}
    for image in images:
        counts[image.split] = counts.get(image.split, -1) + 1
        yield image._replace(path=str(counts[image.split]))


def images_of(dataset):
    if dataset in SIZES:
        return [
            LabelledImage("", label, str(label), split)
            for split, sizes in zip(("train", "val"), SIZES[dataset], strict=True)
            for label, size in enumerate(sizes)
            for _ in range(size)
        ]
    return read_split_file(load_registry()[dataset].packaged_split())


@pytest.fixture(scope="module")
def split_lists():
    return {dataset: images_of(dataset) for dataset in KNOWN if dataset != "source"}


def digest(images, part):
    listing = "".join(f"{image.path}\n" for image in images if image.split == part)
    return hashlib.sha256(listing.encode()).hexdigest()[:16]


@pytest.mark.parametrize(
    ("dataset", "seed", "shots", "answers"), CASES, ids=[f"{c[0]}-{c[1]}-{c[2]}" for c in CASES]
)
def test_shots_equal_the_reference_lists(split_lists, dataset, seed, shots, answers):
    images = split_lists[dataset]
    drawn = {"indices": draw_shots(by_position(images), shots, seed)}
    if dataset not in SIZES:
        drawn["paths"] = draw_shots(images, shots, seed)
    found = {
        f"{part}_{kind}": digest(listing, part)
        for kind, listing in drawn.items()
        for part in ("train", "val")
    }
    assert found == answers


def test_known_answers_cover_ten_datasets_two_seeds_and_five_shot_counts():
    assert len(CASES) == 10 * 2 * 5


def test_packaged_split_files_are_the_published_ones():
    import lzma

    packaged = sorted(PACKAGED.glob("splits/*.xz"))
    files = {d.split_file.name: d.split_file for d in load_registry().values() if d.split_file}
    assert len(packaged) == 7
    for path in packaged:
        content = lzma.decompress(path.read_bytes())
        assert len(content) == files[path.stem].bytes
        assert f"sha256:{hashlib.sha256(content).hexdigest()}" == files[path.stem].checksum


def dataset_of(sizes, split="train"):
    return [
        LabelledImage(f"{split}/{label}/{i}", label, f"c{label}", split)
        for label, size in sizes
        for i in range(size)
    ]


def test_imagenet_draws_train_and_val_at_once_in_label_order():
    # MaxZanella/CLIP-LoRA@358f0d7 datasets/imagenet.py: one sample per class of shots + min(4,
    # shots), the first `shots` of which are for training.
    images = dataset_of([(2, 30), (0, 25), (1, 40)])
    generator = random.Random(5)
    train, val = [], []
    for label, size in ((0, 25), (1, 40), (2, 30)):
        picked = generator.sample([f"train/{label}/{i}" for i in range(size)], 8 + 4)
        train += picked[:8]
        val += picked[8:]
    drawn = draw_shots(images, 8, 5)
    assert [image.path for image in drawn if image.split == "train"] == train
    assert [image.path for image in drawn if image.split == "val"] == val
    assert [image.split for image in drawn] == ["val"] * 12 + ["train"] * 24


def test_classes_are_visited_in_order_of_first_appearance():
    images = dataset_of([(7, 5), (3, 5), (0, 5)]) + dataset_of([(7, 5), (3, 5), (0, 5)], "val")
    labels = [image.label for image in draw_shots(images, 2, 1)]
    assert labels == [7, 7, 3, 3, 0, 0] * 2


def test_a_small_class_is_drawn_with_replacement():
    images = dataset_of([(0, 2), (1, 9)]) + dataset_of([(0, 1), (1, 9)], "val")
    drawn = draw_shots(images, 4, 3)
    small = [i.path for i in drawn if i.label == 0 and i.split == "train"]
    assert len(small) == 4
    assert set(small) <= {"train/0/0", "train/0/1"}


@given(
    sizes=st.lists(st.integers(21, 30), min_size=1, max_size=5),
    shots=st.sampled_from([1, 2, 4, 8, 16]),
    seed=st.integers(0, 2**31),
    with_val=st.booleans(),
)
def test_every_class_gets_its_shots_without_repetition(sizes, shots, seed, with_val):
    images = dataset_of(enumerate(sizes))
    if with_val:
        images += dataset_of(enumerate(sizes), "val")
    drawn = draw_shots(images, shots, seed)
    assert len({(i.split, i.path) for i in drawn}) == len(drawn)
    for label in range(len(sizes)):
        parts = [i.split for i in drawn if i.label == label]
        assert parts.count("train") == shots
        assert parts.count("val") == min(shots, 4)
    assert drawn == draw_shots(images, shots, seed)


def test_the_global_random_state_neither_matters_nor_changes():
    images = dataset_of([(0, 30)])
    random.seed(1)
    first, state = draw_shots(images, 4, 2), random.getstate()
    random.seed(99)
    assert draw_shots(images, 4, 2) == first
    random.seed(1)
    assert random.getstate() == state


def test_a_class_too_small_for_a_joint_draw_is_named():
    with pytest.raises(UserError, match=r"class 1 \('c1'\) has 5 training images.*need 8"):
        draw_shots(dataset_of([(0, 20), (1, 5)]), 4, 1)


@pytest.mark.parametrize("shots", [0, -1])
def test_shots_below_one_are_refused(shots):
    with pytest.raises(UserError, match="at least 1"):
        draw_shots(dataset_of([(0, 5)]), shots, 1)
