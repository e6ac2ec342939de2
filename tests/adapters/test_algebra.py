import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from blocklora.adapters.adapter import Adapter
from blocklora.adapters.algebra import delta, merge_arms, tile_down
from blocklora.adapters.config import PARTITIONS, AdapterConfig, Cut
from blocklora.errors import UserError
from blocklora.validation import validated
from tests.tiny import LORA

VIT_B16 = {"vision": (12, 768), "text": (12, 512)}


def make(**changes):
    return AdapterConfig(**{**LORA.__dict__, **changes})


configs = st.builds(
    lambda inner, blocks, partition: make(
        rank=inner * blocks if partition == "rank" else inner, blocks=blocks, partition=partition
    ),
    st.integers(1, 4),
    st.sampled_from([1, 2, 4]),
    st.sampled_from(["rank", "input"]),
)


def random_factors(config, d_in, d_out, seed):
    generator = torch.Generator().manual_seed(seed)
    down_shape, up_shape = config.factor_shapes(d_in, d_out)
    return (
        torch.randn(down_shape, generator=generator, dtype=torch.float64),
        torch.randn(up_shape, generator=generator, dtype=torch.float64),
    )


@given(configs, st.integers(1, 3), st.integers(1, 6), st.integers(0, 99))
def test_delta_equals_the_formula_of_each_partition(config, slices, d_out, seed):
    d_in = 4 * slices
    down, up = random_factors(config, d_in, d_out, seed)
    x = np.random.default_rng(seed).normal(size=d_in)
    a, b = down.numpy(), up.numpy()
    if config.partition == "rank":
        expected = sum(arm @ (a @ x) for arm in b)
    else:
        expected = b[0] @ (a @ x.reshape(config.blocks, -1).sum(0))
    np.testing.assert_allclose(delta(down, up, config).numpy() @ x, expected, atol=1e-12)


@given(configs, st.integers(1, 3), st.integers(1, 6))
def test_parameters_are_r_d_in_over_n_plus_r_d_out(config, slices, d_out):
    d_in = 4 * slices
    down, up = random_factors(config, d_in, d_out, 0)
    count = config.rank * d_in // config.blocks + config.rank * d_out
    assert down.numel() + up.numel() == count


@given(configs, st.integers(0, 99))
def test_equal_arms_are_the_lora_they_merge_into(config, seed):
    down, up = random_factors(config, 8, 5, seed)
    equal = up[:1].expand_as(up)
    update = config.scale * delta(down, equal, config)
    merged = config.merged
    torch.testing.assert_close(merged.scale * delta(down, up[:1], merged), update)
    assert (merged.arms, merged.merged) == (1, merged)


def test_a_partition_may_cut_both_axes(monkeypatch):
    monkeypatch.setitem(PARTITIONS, "both", Cut(rank=True, inputs=True))
    config = make(rank=4, blocks=2, partition="both")
    down, up = random_factors(config, 8, 8, 1)
    assert (down.shape, up.shape) == ((2, 4), (2, 8, 2))
    torch.testing.assert_close(delta(down, up, config), up.sum(0) @ torch.cat([down, down], 1))
    # r/n · d/n + r · d = 2 · 4 + 4 · 8 numbers against 2 r d of LoRA: the share of n = 2 is 0.625.
    assert down.numel() + up.numel() == 0.625 * (2 * 4 * 8)
    update = config.merged.scale * delta(down, up[:1], config.merged)
    torch.testing.assert_close(update, config.scale * delta(down, up[:1].expand_as(up), config))
    assert (config.merged.partition, config.merged.blocks) == ("input", 2)


@pytest.mark.parametrize("partition", ["rank", "input"])
def test_one_block_is_lora(partition):
    config = make(rank=3, partition=partition)
    down, up = random_factors(config, 8, 5, 1)
    torch.testing.assert_close(delta(down, up, config), up[0] @ down)
    assert tile_down(down, config) is down
    torch.testing.assert_close(merge_arms(up), up[0])


@given(configs)
@settings(max_examples=30)
def test_rank_of_delta_is_what_the_partition_allows(config):
    down, up = random_factors(config, 16, 16, 2)
    limits = {"rank": config.rank // config.blocks, "input": min(config.rank, 16 // config.blocks)}
    assert torch.linalg.matrix_rank(delta(down, up, config)) == limits[config.partition]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"rank": 2}, 184_320),
        ({"rank": 2, "blocks": 2}, 138_240),
        ({"rank": 2, "blocks": 2, "partition": "input"}, 138_240),
        ({"rank": 4, "blocks": 4}, 230_400),
    ],
)
def test_vit_b16_has_72_matrices_and_the_published_parameter_counts(changes, expected):
    # 184,320: OrthoAdapt's protocol for CLIP-LoRA at rank 2, and 36·2·(768+768) + 36·2·(512+512).
    adapter = Adapter.initialise(make(**changes), VIT_B16, torch.Generator())
    assert adapter.adapted_matrices == 72
    assert adapter.trainable_parameters == expected
    assert adapter.trainable_parameters == sum(p.numel() for p in adapter.parameters())


def test_initialisation_is_kaiming_uniform_with_zero_update():
    config = make(rank=8, blocks=2, partition="input")
    adapter = Adapter.initialise(config, VIT_B16, torch.Generator().manual_seed(3))
    down = adapter.towers["vision"].down.detach()
    bound = 1 / np.sqrt(768 / 2)
    reference = torch.empty(8, 384)
    torch.nn.init.kaiming_uniform_(reference, a=5**0.5)
    assert down.abs().max() <= bound
    assert down.abs().max() > 0.999 * bound
    assert down.std().item() == pytest.approx(reference.std().item(), rel=0.05)
    assert down.mean().item() == pytest.approx(0, abs=bound / 100)
    assert all(not update.any() for _, update in adapter.updates())


def test_initialisation_follows_the_seed():
    first, again, other = (
        Adapter.initialise(LORA, VIT_B16, torch.Generator().manual_seed(s)).towers["text"].down
        for s in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": 0}, "rank: 0 is not allowed; it must be a whole number of at least 1"),
        ({"partition": "diagonal"}, 'partition: "diagonal" is not .* it must be one of rank, '),
        ({"dropout": 1.0}, "dropout: 1.0 is not allowed; .* at least 0 and below 1"),
        ({"matrices": ["q", "x"]}, r'matrices\[1\]: "x" is not .* one of q, k, v, o'),
        ({"matrices": []}, r"matrices: \[\] is not .* a list of different ones"),
        ({"towers": ["vision", "vision"]}, "towers: .* different ones of vision, text"),
        ({"layers": [3, 1]}, r"layers: \[3, 1\] is not allowed; it must ascend"),
        ({"rnk": 3}, "rnk: unknown key; did you mean rank?"),
    ],
)
def test_impossible_configurations_in_a_file_are_refused_by_name(changes, message):
    with pytest.raises(UserError, match=f"some.file: {message}"):
        validated(AdapterConfig, {**LORA.to_json(), **changes}, "some.file")


@pytest.mark.parametrize("changes", [{"rank": 3, "blocks": 2}, {"layers": (3, 1)}])
def test_values_that_do_not_go_together_are_refused_anywhere(changes):
    with pytest.raises(ValueError, match=f"^{next(iter(changes))}: .* is not allowed; it must"):
        make(**changes)


def test_layer_range_beyond_the_tower_is_refused():
    with pytest.raises(UserError, match="beyond the vision tower, whose layers are 0 to 11"):
        Adapter.initialise(make(layers=(6, 12)), VIT_B16, torch.Generator())


def test_input_partition_needs_a_width_the_blocks_divide():
    with pytest.raises(UserError, match="cannot be cut into 7 equal slices"):
        make(rank=2, blocks=7, partition="input").factor_shapes(768, 768)
