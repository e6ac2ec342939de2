"""Bounds of the error rate of a classifier that can be written down in few bits."""

from math import log

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit, gammaln, log_expit, logsumexp

# At this log-odds a probability rounds to 1 in double precision.
_CERTAIN = 37.0


def occam_bound(errors: int, samples: int, bits: float, delta: float) -> float:
    """Return an upper bound of the error rate of a classifier that is described in `bits`.

    This is the Occam bound with the exact binomial tail (Langford 2005, "Tutorial on Practical
    Prediction Theory for Classification", JMLR 6, section 4). Given a prefix-free code
    (Σ 2^-bits(h) <= 1) that was fixed before the sample was seen, all its words h satisfy

        risk(h) <= sup{p : P(Binomial(N, p) <= errors(h)) >= δ 2^-bits(h)}

    simultaneously with probability 1 − δ over the sample. This is never worse than Hoeffding's
    errors/N + sqrt((bits ln 2 + ln 1/δ) / 2N) or the Chernoff bound with the relative entropy. Zhou
    et al. 2019 (arXiv 1804.05862) and Lotfi et al. 2022 (arXiv 2211.13609) apply it to compressed
    networks.

    A sample with the same number of images for every class is stratified, and the bound holds for
    the risk averaged over classes: with unequal probabilities, P(errors <= k) is at most the
    binomial tail of their mean p if k <= N p - 1 (Hoeffding 1956, "On the distribution of the
    number of successes in independent trials", Ann. Math. Statist. 27). For δ < 1/4 and k <= N - 2,
    this is the case for all p above the bound. For larger k, the bound is 1.

    Args:
        errors: number of misclassified training samples.
        samples: N.
        bits: length of the classifier's code word.
        delta: δ < 1/4, the probability with which the bound may fail.
    """
    if errors > samples - 2:
        return 1.0
    level = log(delta) - bits * log(2)
    wrong = np.arange(errors + 1)
    right = samples - wrong
    log_choose = gammaln(samples + 1) - gammaln(wrong + 1) - gammaln(right + 1)

    def excess(log_odds: float) -> float:
        terms = log_choose + wrong * log_expit(log_odds) + right * log_expit(-log_odds)
        return float(logsumexp(terms)) - level

    if excess(_CERTAIN) >= 0:
        return 1.0
    return float(expit(brentq(excess, -_CERTAIN, _CERTAIN, xtol=1e-12)))


def guessing_error(classes: int) -> float:
    """Return the error rate of guessing, averaged over classes.

    A larger bound says nothing, even if it is below 1: the exact tail gives a bound below 1 as soon
    as two samples are classified correctly.
    """
    return 1 - 1 / classes
