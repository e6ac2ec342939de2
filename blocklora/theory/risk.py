"""An upper bound on the error rate of a classifier that few bits describe."""

from math import log

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit, gammaln, log_expit, logsumexp

# At this log-odds a probability rounds to 1 in double precision.
_CERTAIN = 37.0


def occam_bound(errors: int, samples: int, bits: float, delta: float) -> float:
    """Return an upper bound on the error rate of a classifier that `bits` bits describe.

    This is the Occam bound with the exact binomial tail (Langford 2005, "Tutorial on Practical
    Prediction Theory for Classification", JMLR 6, section 4). Let a prefix-free code
    (Σ 2^-bits(h) <= 1) be fixed before the sample is seen. Then all classifiers h with a word in
    the code satisfy

        risk(h) <= sup{p : P(Binomial(N, p) <= errors(h)) >= δ 2^-bits(h)}

    simultaneously with probability at least 1 − δ over the sample. This is never worse than
    Hoeffding's errors/N + sqrt((bits ln 2 + ln 1/δ) / 2N) or the Chernoff bound with the relative
    entropy. Zhou et al. 2019 (arXiv 1804.05862) and Lotfi et al. 2022 (arXiv 2211.13609) bound the
    risk of compressed networks with related PAC-Bayes bounds.

    The bound also holds for a sample with the same number of images of every class, and is then
    about the risk averaged over classes. The probability of an error then differs between images,
    but P(errors <= k) is at most the tail of a binomial with their mean p if k <= N p - 1
    (Hoeffding 1956, "On the distribution of the number of successes in independent trials", Ann.
    Math. Statist. 27). If δ < 1/4 and k <= N - 2, every p above the bound meets this condition,
    because a binomial with p < 1 - 1/N is at most its mean with a probability above 1/4 (Greenberg
    and Mohri 2014, "Tight lower bound on the probability of a binomial exceeding its expectation",
    arXiv 1306.1433, applied to N - errors). For larger k, this function returns 1.

    Args:
        errors: Number of misclassified training samples.
        samples: N.
        bits: Length of the classifier's code word.
        delta: δ < 1/4, the probability with which the bound may fail.
    """
    if errors > samples - 2:
        return 1.0
    level = log(delta) - bits * log(2)  # in logarithms, because δ 2^-bits underflows
    wrong = np.arange(errors + 1)
    right = samples - wrong
    log_choose = gammaln(samples + 1) - gammaln(wrong + 1) - gammaln(right + 1)

    def excess(log_odds: float) -> float:  # falls with the log-odds of p; its root is the bound
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
