"""Spread over seeds, and Block-LoRA against LoRA across datasets.

Seeds of one dataset share its images and its difficulty, so they are no independent evidence of a
method's advantage: differences are averaged over seeds first, and the test is across datasets.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import nan, sqrt

import numpy as np
from scipy import stats
from scipy.optimize import brentq
from scipy.special import ndtr

CONFIDENCE = 0.95
POWER = 0.8
RESAMPLES = 10_000  # the Monte Carlo error of a 95 % limit is then about 1 % of the interval


@dataclass(frozen=True)
class Summary:
    """Mean, standard deviation (n - 1) and t confidence interval of a few values.

    `std`, `low` and `high` are NaN for fewer than two values.
    """

    mean: float
    std: float
    count: int
    low: float
    high: float


def summarise(values: Sequence[float]) -> Summary:
    """Return the summary of `values`; NaN are left out, and no value gives a mean of NaN."""
    data = np.asarray(values, dtype=float)
    data = data[~np.isnan(data)]
    if data.size == 0:
        return Summary(nan, nan, 0, nan, nan)
    mean = float(data.mean())
    if data.size == 1:
        return Summary(mean, nan, 1, nan, nan)
    std = float(data.std(ddof=1))
    half = critical_t(data.size) * std / sqrt(data.size)
    return Summary(mean, std, data.size, mean - half, mean + half)


def critical_t(count: int) -> float:
    """Return the two-sided critical value of a t statistic of `count` values."""
    return float(stats.t.ppf((1 + CONFIDENCE) / 2, count - 1))


@dataclass(frozen=True)
class Comparison:
    """Paired differences of two methods, one value per dataset.

    Attributes:
        summary: the summary of the differences, with the t interval.
        effect_size: Cohen's d_z, mean / standard deviation of the differences (Cohen 1988, 2.3.5).
        bootstrap_low: lower end of the bootstrap interval of the mean, resampling datasets.
        bootstrap_high: its upper end.
        wilcoxon_p: two-sided p of Wilcoxon's signed-rank test.
        permutation_p: two-sided p of the test that flips the signs of the differences.
        detectable: the smallest mean difference that a paired two-sided t-test on as many
            datasets finds at 5 % with a probability of 80 %, given the observed spread.
    """

    summary: Summary
    effect_size: float
    bootstrap_low: float
    bootstrap_high: float
    wilcoxon_p: float
    permutation_p: float
    detectable: float


def compare(differences: Sequence[float]) -> Comparison:
    """Return the comparison of paired differences, one per dataset; NaN are left out.

    With fewer than two differences only the mean is known and all else is NaN. Equal differences
    have no spread, hence a degenerate interval and an effect size of NaN.
    """
    data = np.asarray(differences, dtype=float)
    data = data[~np.isnan(data)]
    summary = summarise(data)
    if data.size < 2:
        return Comparison(summary, nan, nan, nan, nan, nan, nan)
    varies = summary.std > 1e-12 * max(1.0, abs(summary.mean))
    low, high = _bootstrap_interval(data) if varies else (summary.mean, summary.mean)
    return Comparison(
        summary=summary,
        effect_size=summary.mean / summary.std if varies else nan,
        bootstrap_low=low,
        bootstrap_high=high,
        wilcoxon_p=_wilcoxon(data),
        permutation_p=_sign_flips(data),
        detectable=detectable_difference(summary.std, data.size) if varies else nan,
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p values adjusted by Holm's step-down method (Holm 1979); NaN stay out of the family.

    The i-th smallest of m becomes the largest of min(1, (m - j + 1) p_(j)) over j <= i.
    """
    values = np.asarray(p_values, dtype=float)
    known = np.flatnonzero(~np.isnan(values))
    order = known[np.argsort(values[known], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    adjusted = np.full(values.shape, nan)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(factors * values[order]))
    return adjusted.tolist()


def detectable_difference(std: float, count: int) -> float:
    """Return the smallest mean of `count` differences found with probability `POWER`.

    The test is the paired two-sided t-test at 1 - `CONFIDENCE`, with `std` taken as the true
    spread. Its statistic is (Z + shift) / (chi / sqrt(count - 1)) (Cohen 1988, 2.2); the power is
    the mean over chi of a normal probability, since scipy's noncentral t returns NaN in the tails
    that two or three datasets need.
    """
    freedom = count - 1
    critical = critical_t(count)
    spread = stats.chi(freedom)

    def shortfall(shift: float) -> float:
        def found(chi: float) -> float:
            limit = critical * chi / sqrt(freedom)
            return ndtr(shift - limit) + ndtr(-shift - limit)

        return spread.expect(found) - POWER

    # The solution lies below the upper limit for every count: 16.3 of 17.5 at 2, 2.80 of 3.55 at
    # infinity.
    return brentq(shortfall, 0.1, 1.3 * critical + 1) * std / sqrt(count)


def _bootstrap_interval(data: np.ndarray) -> tuple[float, float]:
    """Return the bias-corrected and accelerated interval, or the percentile one where it fails.

    The correction divides by zero where a resample's mean never or always falls below the mean.
    """
    for method in ("BCa", "percentile"):
        with np.errstate(all="ignore"):
            result = stats.bootstrap(
                (data,),
                np.mean,
                n_resamples=RESAMPLES,
                confidence_level=CONFIDENCE,
                method=method,
                rng=np.random.default_rng(0),
            )
        low, high = map(float, result.confidence_interval)
        if np.isfinite([low, high]).all():
            break
    return low, high


def _wilcoxon(data: np.ndarray) -> float:
    """Return the p value of Wilcoxon's test; differences of zero are dropped, all zero gives 1."""
    data = data[data != 0]
    if data.size == 0:
        return 1.0
    return float(stats.wilcoxon(data).pvalue)


def _sign_flips(data: np.ndarray) -> float:
    """Return the p value of the mean under all sign flips, sampled beyond 13 datasets."""
    result = stats.permutation_test(
        (data,),
        np.mean,
        permutation_type="samples",
        vectorized=True,
        n_resamples=RESAMPLES,
        rng=np.random.default_rng(0),
    )
    return float(result.pvalue)
