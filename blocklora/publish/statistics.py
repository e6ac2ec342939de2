"""Statistics of accuracies: the spread over seeds, and the comparison of two methods.

All seeds of a dataset share its images and its difficulty, so they are not independent evidence
that a method is better. Differences are therefore averaged over seeds before they are compared
across datasets.
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
RESAMPLES = 10_000  # the Monte Carlo error of a 95% limit is about 1% of the interval


@dataclass(frozen=True)
class Summary:
    """The mean of a few values, their standard deviation (n - 1) and the t interval of the mean.

    `std`, `low` and `high` are NaN for fewer than two values, and `mean` is NaN without any.
    """

    mean: float
    std: float
    count: int
    low: float
    high: float


def summarise(values: Sequence[float]) -> Summary:
    """Return the summary of the values that are not NaN."""
    data = _known(values)
    mean = float(data.mean()) if data.size else nan
    std = float(data.std(ddof=1)) if data.size > 1 else nan
    half = critical_t(data.size) * std / sqrt(data.size) if data.size > 1 else nan
    return Summary(mean, std, data.size, mean - half, mean + half)


def _known(values: Sequence[float]) -> np.ndarray:
    data = np.asarray(values, dtype=float)
    return data[~np.isnan(data)]


def critical_t(count: int) -> float:
    """Return the two-sided critical value of the t statistic of `count` values."""
    return float(stats.t.ppf((1 + CONFIDENCE) / 2, count - 1))


def compare(differences: Sequence[float]) -> dict[str, float]:
    """Compare two methods by their paired differences, one per dataset; NaN is left out.

    With fewer than two differences, only their number and mean are known, and all else is NaN.
    Equal differences have no spread: their intervals have no width, and `effect_size` and
    `detectable` are NaN.

    Returns:
        datasets, difference, std: The number of differences, their mean and standard deviation.
        bootstrap_low, bootstrap_high: The bootstrap interval of the mean, resampling datasets.
        t_low, t_high: The t interval of the mean.
        effect_size: Cohen's d_z, mean / standard deviation (Cohen 1988, 2.3.5).
        wilcoxon_p: Two-sided p value of Wilcoxon's signed-rank test.
        permutation_p: Two-sided p value of the test that flips the signs of the differences.
        detectable: The `detectable_difference`, given the observed spread.
    """
    data = _known(differences)
    summary = summarise(data)
    low, high, effect, wilcoxon, flips, detectable = [nan] * 6
    if data.size > 1:
        wilcoxon, flips = _wilcoxon(data), _sign_flips(data)
        if summary.std > 1e-12 * max(1.0, abs(summary.mean)):
            low, high = _bootstrap_interval(data)
            effect = summary.mean / summary.std
            detectable = detectable_difference(summary.std, data.size)
        else:
            low = high = summary.mean
    return {
        "datasets": summary.count,
        "difference": summary.mean,
        "std": summary.std,
        "bootstrap_low": low,
        "bootstrap_high": high,
        "t_low": summary.low,
        "t_high": summary.high,
        "effect_size": effect,
        "wilcoxon_p": wilcoxon,
        "permutation_p": flips,
        "detectable": detectable,
    }


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p values adjusted by Holm's step-down method (Holm 1979).

    The i-th smallest of m becomes the largest of min(1, (m - j + 1) p_(j)) over j <= i. NaN stays
    NaN and does not count towards m.
    """
    values = np.asarray(p_values, dtype=float)
    known = np.flatnonzero(~np.isnan(values))
    order = known[np.argsort(values[known], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    adjusted = np.full(values.shape, nan)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(factors * values[order]))
    return adjusted.tolist()


def detectable_difference(std: float, count: int) -> float:
    """Return the smallest mean of `count` differences that is found with probability `POWER`.

    The test is the paired two-sided t-test at 1 - `CONFIDENCE`, where `std` is taken for the true
    spread. Its statistic is (Z + shift) / (chi / sqrt(count - 1)) (Cohen 1988, 2.2), where Z is
    standard normal, `shift` is the mean in standard errors, and chi has count - 1 degrees of
    freedom. The power is computed as the mean over chi of a normal probability, because scipy's
    noncentral t returns NaN in the tails that two or three datasets need.

    Args:
        std: The standard deviation of the differences.
        count: The number of differences, at least 2.
    """
    freedom = count - 1
    critical = critical_t(count)
    spread = stats.chi(freedom)

    def shortfall(shift: float) -> float:
        def found(chi: float) -> float:
            limit = critical * chi / sqrt(freedom)
            return ndtr(shift - limit) + ndtr(-shift - limit)

        return spread.expect(found) - POWER

    # The upper limit exceeds the solution for every count: they are 17.5 and 16.3 for two
    # differences, and 3.55 and 2.80 for infinitely many.
    return brentq(shortfall, 0.1, 1.3 * critical + 1) * std / sqrt(count)


def _bootstrap_interval(data: np.ndarray) -> tuple[float, float]:
    """Return the bias-corrected and accelerated (BCa) interval, or else the percentile interval.

    BCa gives NaN if the means of all resamples lie on the same side of the mean.
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
    """Return the p value of Wilcoxon's test, which leaves out zeros; without others, it is 1."""
    data = data[data != 0]
    return float(stats.wilcoxon(data).pvalue) if data.size else 1.0


def _sign_flips(data: np.ndarray) -> float:
    """Return the p value of the mean over all flips of signs.

    From 14 differences on, there are more than `RESAMPLES` flips, and a sample of them is used.
    """
    result = stats.permutation_test(
        (data,),
        np.mean,
        permutation_type="samples",
        vectorized=True,
        n_resamples=RESAMPLES,
        rng=np.random.default_rng(0),
    )
    return float(result.pvalue)
