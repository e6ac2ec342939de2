import itertools
from dataclasses import replace
from math import log, sqrt

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from blocklora.adapters.adapter import Adapter
from blocklora.theory.coding import STEPS, Code, compress, integer_bits
from blocklora.theory.risk import guessing_error, occam_bound
from tests.tiny import LORA

SHAPES = {"vision": (2, 48), "text": (1, 32)}


def trained(config, seed=0, size=0.05):
    """An adapter with arms as training leaves them: equal, of a typical size."""
    generator = torch.Generator().manual_seed(seed)
    adapter = Adapter.initialise(config, SHAPES, generator)
    with torch.no_grad():
        for tower in adapter.towers.values():
            tower.up[:, :, :1].normal_(0, size, generator=generator)
            tower.up.copy_(tower.up[:, :, :1].expand_as(tower.up))
    return adapter


@given(st.integers(2, 400), st.data())
def test_bound_without_code_is_the_interval_of_clopper_and_pearson(samples, data):
    errors = data.draw(st.integers(0, samples - 2))
    expected = stats.beta.ppf(0.95, errors + 1, samples - errors)
    assert occam_bound(errors, samples, 0, 0.05) == pytest.approx(expected, rel=1e-6)


@given(st.integers(2, 10_000), st.floats(0, 1e5))
def test_bound_of_a_faultless_classifier_has_a_closed_form(samples, bits):
    expected = -np.expm1((log(0.05) - bits * log(2)) / samples)
    assert occam_bound(0, samples, bits, 0.05) == pytest.approx(expected, rel=1e-9)


@settings(max_examples=50)
@given(st.integers(1, 20_000), st.floats(0, 1), st.floats(0, 1e5))
def test_bound_is_never_worse_than_hoeffding(samples, rate, bits):
    errors = int(rate * samples)
    hoeffding = errors / samples + sqrt((bits * log(2) + log(20)) / (2 * samples))
    bound = occam_bound(errors, samples, bits, 0.05)
    assert errors / samples <= bound <= min(1, hoeffding) + 1e-12


@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=6),
    st.integers(1, 4),
    st.sampled_from([0.0, 1.0, 6.5]),
    st.sampled_from([0.05, 0.24]),
)
def test_bound_holds_with_the_probability_it_promises(risks, shots, bits, delta):
    # `shots` images of each class, which a classifier gets wrong with the class's own risk.
    distribution = np.ones(1)
    for risk in risks * shots:
        distribution = np.convolve(distribution, [1 - risk, risk])
    samples = len(risks) * shots
    broken = [
        occam_bound(errors, samples, bits, delta) < np.mean(risks) - 1e-9
        for errors in range(samples + 1)
    ]
    assert distribution[broken].sum() <= delta * 2**-bits + 1e-12


def test_guessing_among_classes_is_wrong_in_all_cases_but_one():
    labels = np.repeat(np.arange(7), 5)
    guesses = [np.mean(labels != label) for label in range(7)]
    assert guessing_error(7) == pytest.approx(np.mean(guesses))


@pytest.mark.parametrize("length", [1, 2, 5])
def test_code_of_integers_is_prefix_free(length):
    # All words with magnitudes up to 3: their probabilities 2^-bits must not exceed 1 in sum.
    words = itertools.product(range(-3, 4), repeat=length)
    total = sum(2 ** -integer_bits(np.array(word)) for word in words if any(word))
    assert 0.1 < total <= 1


def test_length_of_integers_equals_the_sequential_estimator():
    levels = np.array([0, 1, 0, 0, -1, 1, 0, 0])
    seen, expected = {-1: 0.5, 0: 0.5, 1: 0.5}, 1.0  # one bit: gamma code of 1
    for level in levels:
        expected -= np.log2(seen[level] / sum(seen.values()))
        seen[level] += 1
    assert integer_bits(levels) == pytest.approx(expected)


def test_sparse_integers_cost_less_than_a_bit_each():
    levels = np.zeros(768, dtype=np.int64)
    levels[:20] = 1
    assert integer_bits(levels) < 0.25 * 768


@pytest.mark.parametrize(
    "config",
    [LORA, replace(LORA, blocks=2), replace(LORA, blocks=4, partition="input")],
    ids=["lora", "rank", "input"],
)
def test_finer_steps_cost_more_bits_and_come_closer(config):
    adapter = trained(config)
    code = Code(adapter)
    target = torch.cat([update.flatten() for _, update in adapter.updates()])
    bits, errors = [], []
    for exponent in range(4, 20, 2):
        length, word = code.word(exponent)
        rebuilt = torch.cat([update.flatten() for _, update in word.updates()])
        bits.append(length)
        errors.append(float((rebuilt - target).norm() / target.norm()))
    assert bits == sorted(bits)
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-3
    assert bits[4] < code.uncompressed_bits


def test_word_of_an_unchanged_model_takes_one_bit_for_each_component():
    untrained = Adapter.initialise(LORA, SHAPES, torch.Generator())
    bits, word = Code(untrained).word(10)
    assert bits == 5 + 9 * LORA.rank
    assert all(not update.any() for _, update in word.updates())


def test_merged_arms_are_stored_once():
    block = replace(LORA, blocks=2)
    assert Code(trained(block)).uncompressed_bits == 5 + 32 * 2 * (6 * 2 * 48 + 3 * 2 * 32)


def agreement(adapter, reference, samples):
    """A stand-in for a classifier: errors grow with the distance to the trained update."""
    target = torch.cat([update.flatten() for _, update in reference.updates()])
    rebuilt = torch.cat([update.flatten() for _, update in adapter.updates()])
    return round(0.1 * samples + 0.8 * samples * float((rebuilt - target).norm() / target.norm()))


def test_choice_keeps_the_stated_loss_and_has_the_best_bound():
    adapter, samples = trained(replace(LORA, blocks=2)), 20_000
    found = compress(adapter, lambda a: agreement(a, adapter, samples), samples, 0.02, 0.05)
    assert found.train_error <= 0.1 + 0.02
    assert found.bits < Code(adapter).uncompressed_bits
    assert found.bound == occam_bound(round(found.train_error * samples), samples, found.bits, 0.05)
    assert found.bound < 1
    code = Code(adapter)
    for exponent in range(STEPS):
        bits, word = code.word(exponent)
        errors = agreement(word, adapter, samples)
        if errors <= 0.12 * samples:
            assert occam_bound(errors, samples, bits, 0.05) >= found.bound


def test_adapter_that_resists_compression_is_written_down_as_it_is():
    adapter = trained(LORA)
    found = compress(adapter, lambda a: 0 if a is adapter else 40, 40, 0.01, 0.05)
    assert found.bits == Code(adapter).uncompressed_bits
    assert found.train_error == 0
    assert found.bound > guessing_error(10)
