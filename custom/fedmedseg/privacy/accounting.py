"""What noisy replies cost a site in privacy: the exact account of the Gaussian mechanism over any number of releases.

**The guarantee.** A reply is ``clip(d, C) + N(0, (zC)^2 I)``, where ``d`` is the whole update of a site and z the
noise multiplier. Two neighbours are *any two data sets of this one site* (replacement of everything it has). Both
updates lie in a ball of radius C, so they are at most 2C apart: the sensitivity is 2C, not the C of statements that
compare a site's update with none. What leaves a site is noisy already, so the guarantee holds against the server,
the other sites and everybody after them, and one patient is covered as a part of the whole.

**The account.** One release is Gaussian differential privacy with mu = 2/z (Dong, Roth and Su 2022); any number of
them, each chosen in sight of those before, is the same with mu^2 summed (their corollary 3.3; parameters that
change on the way: Smith and Thakurta 2022). Epsilon for a delta follows from Balle and Wang 2018, theorem 8:

    delta(epsilon) = Phi(mu/2 - epsilon/mu) - exp(epsilon) Phi(-mu/2 - epsilon/mu)

This is exact; the moments of Renyi (Mironov 2017) give a slightly larger epsilon. Libraries were looked at:
dp-accounting 0.6.0 gives the same figures (tests/privacy/test_accounting.py) and would hold back ``attrs``.
"""

from __future__ import annotations

import math

SENSITIVITY = 2.0
"""Distance of two updates inside the ball, in units of its radius."""


def loss_of(multiplier: float) -> float:
    """What one release adds to mu squared: ``(2 / multiplier) ** 2``."""
    return (SENSITIVITY / multiplier) ** 2


def log_delta_of(epsilon: float, mu: float) -> float:
    """Natural logarithm of the smallest delta that goes with ``epsilon``; minus infinity where it vanishes."""
    from scipy.special import log_ndtr

    first = float(log_ndtr(mu / 2 - epsilon / mu))
    second = epsilon + float(log_ndtr(-mu / 2 - epsilon / mu))
    # far out in the tail both are equal to the last digit
    return first + math.log(-math.expm1(second - first)) if second < first else -math.inf


def epsilon_of(loss: float, delta: float) -> float:
    """The smallest epsilon, rounded up by at most one part in 10^9, after releases whose ``loss_of`` add up so.

    Raises:
        ValueError: a negative or infinite loss, or a delta outside (0, 1).
    """
    if not 0 <= loss < math.inf or not 0 < delta < 1:
        raise ValueError("a loss of at least 0 and a delta between 0 and 1")
    if not loss:
        return 0.0
    mu, goal = math.sqrt(loss), math.log(delta)
    if log_delta_of(0.0, mu) <= goal:
        return 0.0
    # zero-concentrated privacy bounds it from above (Bun and Steinke 2016, proposition 1.3)
    low, high = 0.0, loss / 2 + math.sqrt(2 * loss * -goal)
    while high - low > 1e-10 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if log_delta_of(middle, mu) > goal else (low, middle)
    return high


def multiplier_for(*, epsilon: float, delta: float, releases: int) -> float:
    """The noise multiplier, to six digits and rounded up, with which ``releases`` replies cost ``epsilon``."""
    low, high = 1e-6, 1e9
    while high / low > 1 + 1e-7:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if epsilon_of(releases * loss_of(middle), delta) > epsilon else (low, middle)
    return high
