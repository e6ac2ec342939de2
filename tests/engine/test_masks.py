"""Dropout masks are what their formula says, and look random."""

import pytest
import torch

from blocklora.engine.masks import draw_masks, kept

WHOLE = 2**64


def key(value=123456789):
    return torch.tensor(value)


def mixed(x):
    """Return the mixing function in integers."""
    for _ in range(2):
        x ^= x >> 32
        x = x * 0xD6E8FEB86659FD93 % WHOLE
    return x ^ x >> 32


def fair_word(key, layer, digit, number):
    """Return 64 fair bits from their counter."""
    counter = layer * 2**40 + digit * 2**36 + number
    return mixed((key + counter * 0x9E3779B97F4A7C15) % WHOLE)


@pytest.mark.parametrize("value", [0, 123456789, 2**63 - 1])
def test_masks_of_dropout_one_quarter_are_or_of_two_fair_words(value):
    layers, tokens, words = 3, 5, 2
    masks = draw_masks(layers, tokens, 8 * words, 0.25, key(value))
    for layer in range(layers):
        for token in range(tokens):
            for word in range(words):
                number = token * words + word
                found = masks[layer, token, 8 * word : 8 * word + 8]
                wanted = fair_word(value, layer, 14, number) | fair_word(value, layer, 15, number)
                assert found.tolist() == list(wanted.to_bytes(8, "little"))


@pytest.mark.parametrize("dropout", [0.25, 0.5, 0.1, 0.9, 2**-16])
def test_masks_keep_each_input_independently_with_the_right_probability(dropout):
    """Those of neighbouring inputs, tokens, layers, matrices and steps are unrelated."""
    layers, tokens, width = 4, 120, 128
    masks = draw_masks(layers, tokens, width, dropout, key())
    keeps = kept(masks, torch.arange(8, dtype=torch.uint8)).double()
    deviation = (dropout * (1 - dropout)) ** 0.5
    per_matrix = keeps.flatten(1)
    draws = per_matrix.shape[1]
    errors = (per_matrix.mean(1) - (1 - dropout)) / deviation * draws**0.5
    assert errors.abs().max() < 4
    assert errors.abs().min() < 1
    others = draw_masks(layers, tokens, width, dropout, key(123456790))
    shifted = [keeps.roll(1, axis) for axis in range(4)]
    shifted += [keeps.roll(8, 3), kept(others, torch.arange(8, dtype=torch.uint8)).double()]
    centred = keeps - (1 - dropout)
    for other in shifted:
        correlation = (centred * (other - (1 - dropout))).mean() / deviation**2
        assert correlation.abs() < 4 / keeps.numel() ** 0.5


def test_counts_in_rows_and_columns_vary_as_independent_draws_do():
    """Structure such as equal rows would show in the variance of their sums."""
    keeps = kept(draw_masks(2, 512, 512, 0.25, key()), torch.tensor([0], dtype=torch.uint8))
    for axis in (2, 3):
        sums = keeps.double().sum(axis)
        assert sums.var().item() == pytest.approx(512 * 0.25 * 0.75, rel=0.2)


@pytest.mark.parametrize(("dropout", "byte"), [(1e-6, 255), (2**-18, 255), (1 - 1e-6, 0)])
def test_a_dropout_that_rounds_to_all_or_nothing_keeps_all_or_nothing(dropout, byte):
    assert (draw_masks(2, 3, 16, dropout, key()) == byte).all()


def test_masks_of_a_token_do_not_depend_on_the_tokens_behind_it():
    """So a batch that is filled up has the masks of the smaller batch."""
    few, many = (draw_masks(2, tokens, 24, 0.25, key()) for tokens in (3, 7))
    assert torch.equal(few, many[:, :3])
    assert torch.equal(few[:1], draw_masks(1, 3, 24, 0.25, key()))


def test_width_need_not_be_a_multiple_of_eight():
    assert torch.equal(
        draw_masks(2, 1, 12, 0.25, key()), draw_masks(2, 1, 16, 0.25, key())[..., :12]
    )


def test_other_devices_compute_with_the_same_operations():
    """The tensors of a GPU take all layers at once, which the meta device can tell from a CPU."""
    masks = draw_masks(3, 5, 16, 0.25, torch.empty((), dtype=torch.int64, device="meta"))
    assert (masks.device.type, masks.dtype, masks.shape) == ("meta", torch.uint8, (3, 5, 16))
