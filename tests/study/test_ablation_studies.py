"""The studies of rank and blocks are grids, by the protocols of the studies they belong to."""

from dataclasses import replace

import pytest

from blocklora.study.pairs import block_pairs, merged_pairs
from blocklora.study.study import load_study
from tests.publish.samples import ROOT

STUDIES = ROOT / "studies"
BLOCKS = (1, 2, 4, 8)


@pytest.fixture(params=[("ablation", "paper", (2, 4, 8, 16)), ("ablation-mini", "mini", (2, 4, 8))])
def case(request):
    name, base, ranks = request.param
    return load_study(STUDIES / f"{name}.yaml"), load_study(STUDIES / f"{base}.yaml"), ranks


def test_ablations_differ_in_methods_and_runs_only(case):
    study, base, _ = case
    assert study.recipe == base.recipe
    assert study.miniature == base.miniature
    assert study.backbones == base.backbones
    assert set(study.datasets) <= set(base.datasets)
    lora, other = study.methods["lora_r2"].adapter, base.methods["clip_lora"].adapter
    assert lora == replace(other, rank=2)


def test_every_rank_is_combined_with_every_number_of_blocks_that_divides_it(case):
    study, _, ranks = case
    merged = {lora for _, lora in merged_pairs(study)}
    adapters = [study.methods[name].adapter for name in study.adapter_methods if name not in merged]
    grid = [(a.rank, a.blocks) for a in adapters if a.partition == "rank"]
    assert sorted(grid) == [(r, n) for r in ranks for n in BLOCKS if r % n == 0]


def test_every_block_lora_has_both_loras_it_is_compared_with(case):
    study, _, _ = case
    adapters = {name: study.methods[name].adapter for name in study.adapter_methods}
    blocks = {name for name, adapter in adapters.items() if adapter.blocks > 1}
    assert {block for block, _ in block_pairs(study)} == blocks
    assert {block for block, _ in merged_pairs(study)} == {
        name for name in blocks if adapters[name].partition == "rank"
    }
