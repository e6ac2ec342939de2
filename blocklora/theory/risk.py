"""Bounds of the risk of a classifier that takes few bits to write down."""

from math import log

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit, gammaln, log_expit, logsumexp

# At this log-odds a probability rounds to 1 in double precision.
_CERTAIN = 37.0


def occam_bound(errors: int, samples: int, bits: float, delta: float) -> float:
    """Return an upper bound of the error rate of a classifier described in `bits`.

    The Occam bound with the exact binomial tail (Langford 2005, "Tutorial on Practical Prediction
    Theory for Classification", JMLR 6, section 4): with probability 1 − δ over the sample,
    simultaneously for every word h of a prefix-free code (Σ 2^-bits(h) <= 1) fixed before the
    sample was seen,

        risk(h) <= sup{p : P(Binomial(N, p) <= errors(h)) >= δ 2^-bits(h)}.

    It is never worse than Hoeffding's errors/N + sqrt((bits ln 2 + ln 1/δ) / 2N), nor than the
    Chernoff form with the relative entropy. Compressed networks are such words: Zhou et al. 2019
    (arXiv 1804.05862), Lotfi et al. 2022 (arXiv 2211.13609).

    The same number of shots for every class is a stratified sample; the bound then holds for the
    risk averaged over classes: with unequal probabilities P(errors <= k) is at most the binomial
    tail of their mean p, if k <= N p - 1 (Hoeffding 1956, "On the distribution of the number of
    successes in independent trials", Ann. Math. Statist. 27). For δ < 1/4 and k <= N - 2 this is
    so for every p above the bound; where it is not, the bound is 1.

    Args:
        errors: misclassified training samples.
        samples: N.
        bits: length of the classifier's code word.
        delta: δ < 1/4, probability with which the statement may fail.
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
    """Return the risk of guessing, averaged over classes: 1 − 1/classes.

    A bound of a risk says something if it is below. That it is below 1 says nothing: the exact
    tail is so as soon as two samples are classified correctly.
    """
    return 1 - 1 / classes
