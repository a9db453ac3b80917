"""What DP-SGD costs: (epsilon, delta) of a noise multiplier, and the noise multiplier for an epsilon.

One step samples every example with probability q (Poisson sampling), sums their clipped gradients and adds
Gaussian noise of `noise_multiplier` times the clipping norm. Neighbouring data sets differ by one added or
removed example. Three accountants give an upper bound on epsilon after a number of steps:

- "pld": privacy loss distributions (dp-accounting; Doroshenko et al., "Connect the Dots", arXiv 2207.04380 v1);
- "rdp": Renyi divergences (dp-accounting; Mironov, Talwar, Zhang, arXiv 1908.10530 v1), fast and looser;
- "prv": privacy random variables (Opacus; Gopi et al., arXiv 2106.02848 v3), slow and hungry beyond epsilon = 20.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import dp_accounting
from dp_accounting.pld import privacy_loss_distribution
from dp_accounting.rdp import RdpAccountant
from scipy.optimize import brentq

ACCOUNTANTS = ("pld", "rdp", "prv")
# Whole orders only: the series of the fractional ones does not converge for a small noise multiplier.
RDP_ORDERS = (*range(2, 65), *range(68, 129, 4), *range(144, 257, 16), 512, 1024)
_NOISE_STEP = 1e-5


def spent_epsilon(
    noise_multiplier: float,
    sample_rate: float,
    steps: int,
    delta: float,
    accountant: str = "pld",
    interval: float = 1e-4,
) -> float:
    """Return an upper bound on the epsilon that so many DP-SGD steps have spent.

    Args:
        noise_multiplier: Standard deviation of the noise over the clipping norm, > 0.
        sample_rate: Probability q that an example is in a batch, 0 < q <= 1.
        steps: Number of steps, empty batches included, >= 0.
        delta: The delta of (epsilon, delta)-differential privacy, 0 < delta < 1.
        accountant: One of `ACCOUNTANTS`.
        interval: Width of a bin of the privacy loss ("pld" only); a wider one is faster and gives a larger bound.

    Returns:
        Epsilon >= 0; 0 after no step.

    Raises:
        ValueError: An argument is out of range or the accountant is unknown.
    """
    _check(sample_rate, steps, delta, accountant, noise_multiplier=noise_multiplier)
    if steps == 0:
        return 0.0
    if accountant == "pld":
        steps_pld = _step_pld(noise_multiplier, sample_rate, interval).self_compose(steps)
        return float(steps_pld.get_epsilon_for_delta(delta))
    if accountant == "rdp":
        step = dp_accounting.PoissonSampledDpEvent(sample_rate, dp_accounting.GaussianDpEvent(noise_multiplier))
        return float(RdpAccountant(RDP_ORDERS).compose(step, steps).get_epsilon(delta))
    from opacus.accountants import PRVAccountant

    prv = PRVAccountant()
    prv.history = [(noise_multiplier, sample_rate, steps)]
    return float(prv.get_epsilon(delta))


def calibrate_noise_multiplier(
    epsilon: float, delta: float, sample_rate: float, steps: int, accountant: str = "pld"
) -> tuple[float, float]:
    """Find the least noise multiplier whose cost after `steps` steps is at most `epsilon`.

    Args:
        epsilon: The budget, > 0.
        delta: The delta of (epsilon, delta)-differential privacy, 0 < delta < 1.
        sample_rate: Probability q that an example is in a batch, 0 < q <= 1.
        steps: Number of steps, >= 1.
        accountant: One of `ACCOUNTANTS`.

    Returns:
        The noise multiplier, a multiple of 1e-5 within 2e-5 of the least one, and the epsilon that it spends.

    Raises:
        ValueError: An argument is out of range, the accountant is unknown, or no noise multiplier between
            0.01 and 1e5 spends this epsilon.
    """
    _check(sample_rate, steps, delta, accountant, epsilon=epsilon)
    if steps == 0:
        raise ValueError("steps must be at least 1, found 0")

    def spent(noise_multiplier: float, method: str = accountant) -> float:
        return spent_epsilon(noise_multiplier, sample_rate, steps, delta, method, pld_interval(epsilon))

    # Renyi accounting is cheap and never below the truth: its answer is the upper end of the search.
    low, high = 0.5, 1.0
    while spent(high, "rdp") > epsilon:
        low, high = high, 2 * high
        if high > 1e5:
            raise ValueError(f"no noise multiplier up to 1e5 gives epsilon {epsilon:g} after {steps} steps")
    while low > 0.01 and spent(low, "rdp") <= epsilon:
        low, high = low / 2, low
    if accountant != "rdp":
        high = _root(lambda value: spent(value, "rdp"), epsilon, low, high, 0.01)
        low = 0.9 * high
        while spent(low) <= epsilon:
            low, high = 0.9 * low, low
            if low < 0.01:
                raise ValueError(f"no noise multiplier down to 0.01 spends epsilon {epsilon:g} in {steps} steps")
    noise_multiplier = _root(spent, epsilon, low, high, _NOISE_STEP / 4)
    noise_multiplier = round(math.ceil(noise_multiplier / _NOISE_STEP) * _NOISE_STEP, 5)
    while (cost := spent(noise_multiplier)) > epsilon:
        noise_multiplier = round(noise_multiplier + _NOISE_STEP, 5)
    return noise_multiplier, cost


def pld_interval(epsilon: float) -> float:
    """Return a bin width that keeps the "pld" bound within about 0.1 % of an epsilon of this size."""
    return 1e-4 * max(0.1, min(epsilon, 10), epsilon / 10)


def _root(spent: Callable[[float], float], epsilon: float, low: float, high: float, tolerance: float) -> float:
    """Return a noise multiplier near the one that spends epsilon, searched in logarithms."""

    def gap(value: float) -> float:
        return math.log(max(spent(math.exp(value)), 1e-12)) - math.log(epsilon)

    ends = [(math.log(value), gap(math.log(value))) for value in (low, high)]
    if ends[1][1] >= 0 or ends[0][1] <= 0:
        return high
    return math.exp(brentq(gap, ends[0][0], ends[1][0], xtol=tolerance / high, rtol=1e-12))


@lru_cache(maxsize=2)
def _step_pld(noise_multiplier: float, sample_rate: float, interval: float):
    return privacy_loss_distribution.from_gaussian_mechanism(
        noise_multiplier, sampling_prob=sample_rate, value_discretization_interval=interval
    )


def _check(sample_rate: float, steps: int, delta: float, accountant: str, **positive: float) -> None:
    for name, value in positive.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be positive, found {value}")
    if not 0 < sample_rate <= 1:
        raise ValueError(f"sample_rate must be above 0 and at most 1, found {sample_rate}")
    if not 0 < delta < 1:
        raise ValueError(f"delta must be between 0 and 1, found {delta}")
    if steps < 0:
        raise ValueError(f"steps must not be negative, found {steps}")
    if accountant not in ACCOUNTANTS:
        raise ValueError(f"unknown accountant {accountant!r}; known: {', '.join(ACCOUNTANTS)}")
