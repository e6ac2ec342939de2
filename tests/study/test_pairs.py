from math import sqrt

import pytest

from blocklora.study.pairs import block_pairs, merged_pairs
from blocklora.study.study import load_study
from tests.publish.samples import CLIP_LORA, METHODS, write_study

METHODS = METHODS | {
    "lora_r4": CLIP_LORA | {"rank": 4},
    "block_r4": CLIP_LORA | {"rank": 4, "blocks": 4},
    "block_input": CLIP_LORA | {"blocks": 2, "partition": "input"},
    "block_vision": CLIP_LORA | {"blocks": 2, "towers": ["vision"]},
    "merged_r2": CLIP_LORA | {"rank": 1, "alpha": sqrt(2), "partition": "input"},
    "merged_r4": CLIP_LORA | {"rank": 1, "alpha": 2},
}


@pytest.fixture
def study(tmp_path):
    return load_study(write_study(tmp_path / "made.yaml", methods=METHODS))


def test_block_lora_is_paired_with_lora_of_the_same_settings_only(study):
    assert block_pairs(study) == [
        ("block_lora", "clip_lora"),
        ("block_r4", "lora_r4"),
        ("block_input", "clip_lora"),
    ]


def test_block_lora_by_rank_is_paired_with_lora_of_its_merged_arms(study):
    assert merged_pairs(study) == [("block_lora", "merged_r2"), ("block_r4", "merged_r4")]
