"""The listed lengths of prompts are those of the datasets' class names."""

import csv
import json
import lzma
from collections import Counter

import pytest

from blocklora.backbones.prompts import class_prompts, tokenize
from blocklora.data.registry import PACKAGED, load_registry
from blocklora.theory.sources import PROMPT_LENGTHS, stand_ins


def listed_lengths():
    return list(csv.DictReader(PROMPT_LENGTHS.read_text(encoding="utf-8").splitlines()))


def prompts_of(name):
    """Return the class prompts of a dataset whose class names are in the package."""
    dataset = load_registry()[name]
    if dataset.classes_file:
        lines = (PACKAGED / dataset.classes_file).read_text().splitlines()
        names = [line.split(" ", 1)[1] for line in lines if not line.startswith("#")]
    else:
        lists = json.loads(lzma.decompress(dataset.packaged_split().read_bytes()))
        labelled = {label: name for part in lists.values() for _, label, name in part}
        names = [labelled[label] for label in sorted(labelled)]
    return tokenize(class_prompts(names, "a photo of a {}."), 77)


@pytest.mark.parametrize(
    "name",
    [
        "imagenet", "eurosat", "stanford_cars", "oxford_pets", "oxford_flowers", "caltech101",
        "dtd", "ucf101",
    ],
)  # fmt: skip
def test_listed_prompt_lengths_are_those_of_the_class_names(name):
    listed = {
        int(row["tokens"]): int(row["prompts"])
        for row in listed_lengths()
        if row["dataset"] == name
    }
    prompts = prompts_of(name)
    assert listed == Counter(len(prompt) for prompt in set(map(tuple, prompts)))
    assert len(prompts) == load_registry()[name].classes


def test_listed_prompts_of_all_eleven_datasets_are_complete():
    counted = Counter()
    for row in listed_lengths():
        counted[row["dataset"]] += int(row["prompts"])
    registry = load_registry()
    expected = {name: registry[name].classes for name in counted}
    # "missile" and "sunglasses" name two classes each.
    assert counted == expected | {"imagenet": 998}
    assert len(counted) == 11


def test_stand_ins_have_the_lengths_and_the_number_asked_for():
    prompts = stand_ins([(2, 5), (1, 7)], 5)
    assert [len(prompt) for prompt in prompts] == [5, 5, 7, 5, 5]
    assert len(set(map(tuple, prompts))) == 3
