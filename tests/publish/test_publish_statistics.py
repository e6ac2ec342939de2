from itertools import product
from math import isnan, nan, sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blocklora.publish.statistics import (
    compare,
    detectable_difference,
    holm,
    summarise,
)

DIFFERENCES = [0.4, -0.1, 0.9, 0.7, 0.2, -0.3, 1.1, 0.6]


def test_summary_of_three_seeds_follows_the_textbook():
    summary = summarise([80.0, 81.0, 85.0])
    assert summary.mean == 82
    assert summary.std == pytest.approx(sqrt((4 + 1 + 9) / 2))
    half = 4.302653 * sqrt(7) / sqrt(3)  # t(0.975; 2) from a printed table
    assert (summary.low, summary.high) == pytest.approx((82 - half, 82 + half), abs=1e-5)


def test_one_value_has_a_mean_and_no_spread():
    summary = summarise([71.5, nan])
    assert (summary.mean, summary.count) == (71.5, 1)
    assert isnan(summary.std)
    assert isnan(summary.low)


def test_no_value_has_no_mean():
    assert isnan(summarise([]).mean)
    assert summarise([nan]).count == 0


def test_the_sign_flip_test_counts_all_flips():
    comparison = compare(DIFFERENCES)
    observed = abs(sum(DIFFERENCES))
    flips = [
        abs(sum(sign * value for sign, value in zip(signs, DIFFERENCES, strict=True)))
        for signs in product([-1, 1], repeat=len(DIFFERENCES))
    ]
    extreme = sum(value >= observed - 1e-12 for value in flips)
    assert comparison["permutation_p"] == pytest.approx(extreme / len(flips))


def test_the_signed_rank_test_counts_all_rank_sums():
    ranks = np.argsort(np.argsort(np.abs(DIFFERENCES))) + 1
    observed = sum(r for r, d in zip(ranks, DIFFERENCES, strict=True) if d > 0)
    centre = ranks.sum() / 2
    sums = [np.dot(ranks, picks) for picks in product([0, 1], repeat=len(ranks))]
    extreme = sum(abs(value - centre) >= abs(observed - centre) for value in sums)
    assert compare(DIFFERENCES)["wilcoxon_p"] == pytest.approx(extreme / len(sums))


def test_effect_size_is_mean_over_standard_deviation():
    expected = np.mean(DIFFERENCES) / np.std(DIFFERENCES, ddof=1)
    assert compare(DIFFERENCES)["effect_size"] == pytest.approx(expected)


def test_the_bootstrap_interval_is_near_the_normal_one_for_many_even_values():
    values = np.linspace(-1, 2, 400)
    comparison = compare(values)
    half = 1.96 * values.std(ddof=1) / 20
    assert comparison["bootstrap_low"] == pytest.approx(0.5 - half, abs=0.01)
    assert comparison["bootstrap_high"] == pytest.approx(0.5 + half, abs=0.01)


def test_equal_differences_have_no_spread():
    comparison = compare([0.5, 0.5, 0.5])
    assert comparison["bootstrap_low"] == comparison["bootstrap_high"] == 0.5
    assert isnan(comparison["effect_size"])
    assert comparison["permutation_p"] == pytest.approx(2 / 8)


def test_no_difference_at_all_is_no_evidence():
    comparison = compare([0.0, 0.0, 0.0, 0.0])
    assert comparison["wilcoxon_p"] == comparison["permutation_p"] == 1


def test_one_dataset_decides_nothing():
    comparison = compare([0.5])
    assert comparison["difference"] == 0.5
    assert isnan(comparison["permutation_p"])
    assert isnan(comparison["detectable"])


@pytest.mark.parametrize(("effect", "count"), [(0.2, 199), (0.5, 34), (0.8, 15), (1.5, 6)])
def test_detectable_difference_agrees_with_published_sample_sizes(effect, count):
    # Smallest n of a paired two-sided t-test at 5 % with 80 % power (G*Power 3.1).
    assert detectable_difference(1.0, count) <= effect < detectable_difference(1.0, count - 1)


@pytest.mark.parametrize("count", [2, 3, 11, 1000])
def test_detectable_difference_exists_for_every_number_of_datasets(count):
    smallest = (1.959964 + 0.841621) / sqrt(count)  # a known spread needs less
    assert smallest < detectable_difference(2.0, count) / 2 < 10 * smallest


def test_holm_adjusts_as_in_a_worked_example():
    # m = 4: 4 × 0.005, 3 × 0.01, 2 × 0.03, then not below its predecessor.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_holm_leaves_unknown_values_out_of_the_family():
    adjusted = holm([0.02, nan, 0.04])
    assert adjusted[::2] == pytest.approx([0.04, 0.04])
    assert isnan(adjusted[1])


@given(st.lists(st.floats(0, 1), max_size=12))
def test_holm_never_lowers_nor_reorders(values):
    adjusted = holm(values)
    assert all(p <= q <= 1 for p, q in zip(values, adjusted, strict=True))
    order = np.argsort(values, kind="stable")
    assert all(np.diff(np.asarray(adjusted)[order]) >= 0)
    assert max(adjusted, default=1) <= max(1, len(values) * max(values, default=0))


@settings(max_examples=15)
@given(st.lists(st.integers(-50, 50).map(lambda tenth: tenth / 10), min_size=2, max_size=8))
def test_exchanging_the_methods_mirrors_the_comparison(differences):
    one = compare(differences)
    other = compare([-value for value in differences])
    assert one["difference"] == pytest.approx(-other["difference"])
    assert one["permutation_p"] == pytest.approx(other["permutation_p"])
    assert one["wilcoxon_p"] == pytest.approx(other["wilcoxon_p"])
    assert one["bootstrap_low"] - 1e-9 <= one["difference"] <= one["bootstrap_high"] + 1e-9


def test_correction_fills_in_the_adjusted_values():
    comparisons = [compare(DIFFERENCES), compare([0.1, -0.2, 0.3, -0.4])]
    first, second = holm([comparison["permutation_p"] for comparison in comparisons])
    assert first == pytest.approx(min(1, 2 * comparisons[0]["permutation_p"]))
    assert second >= comparisons[1]["permutation_p"]
