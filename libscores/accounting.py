"""What DP-SGD costs: (epsilon, delta) of a noise multiplier, and the noise multiplier for an epsilon.

One step samples every example with probability q (Poisson sampling), sums their clipped gradients and adds
Gaussian noise of `noise_multiplier` times the clipping norm. Neighbouring data sets differ by one added or
removed example. Three accountants give an upper bound on epsilon after a number of steps:

- "pld": privacy loss distributions (dp-accounting; Doroshenko et al., "Connect the Dots", arXiv 2207.04380 v1);
- "rdp": Renyi divergences (dp-accounting; Mironov, Talwar, Zhang, arXiv 1908.10530 v1), fast and looser;
- "prv": privacy random variables (Opacus; Gopi et al., arXiv 2106.02848 v3), slow and hungry beyond epsilon = 20.

"pld" and "prv" are numerical: their rounding hides a delta below about 1e-14, and "prv" adds 0.01 to every epsilon.
What they cannot resolve is refused; "rdp" has an answer for any delta.

dp-accounting and SciPy are imported where they are used: a noise multiplier that is known needs neither.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np

ACCOUNTANTS = ("pld", "rdp", "prv")
# Whole orders only: the series of the fractional ones does not converge for a small noise multiplier.
RDP_ORDERS = (*range(2, 65), *range(68, 129, 4), *range(144, 257, 16), 512, 1024)
_NOISE_STEP, _LEAST_NOISE, _LARGEST_NOISE = 1e-5, 0.01, 1e5
# What one evaluation may take: bins of a step's privacy loss ("pld"), points of the whole run's ("prv").
_PLD_BINS, _PRV_POINTS = 2 * 10**5, 2**22


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
        Epsilon >= 0; 0 after no step; infinite where the accountant does not resolve delta.

    Raises:
        ValueError: An argument is out of range, the accountant is unknown, or it fails at these values.
    """
    _check(sample_rate, steps, delta, accountant, noise_multiplier=noise_multiplier)
    if steps == 0:
        return 0.0
    bound = {"pld": _pld_epsilon, "rdp": _rdp_epsilon, "prv": _prv_epsilon}[accountant]
    try:
        return max(0.0, bound(noise_multiplier, sample_rate, steps, delta, interval))
    except (ValueError, ArithmeticError, RuntimeError, MemoryError) as error:
        where = f"noise multiplier {noise_multiplier:g}, {steps} steps, delta {delta:g}"
        raise ValueError(f"accountant {accountant!r} fails at {where}: {error}") from error


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
        The noise multiplier, a multiple of 1e-5 within 2e-5 of the least one unless the accountant's own rounding is
        coarser, and the epsilon that it spends.

    Raises:
        ValueError: An argument is out of range, the accountant is unknown or does not resolve epsilon or delta, or no
            noise multiplier between 0.01 and 1e5 spends this epsilon.
    """
    _check(sample_rate, steps, delta, accountant, epsilon=epsilon)
    if steps == 0:
        raise ValueError("steps must be at least 1, found 0")

    def spent(noise_multiplier: float, method: str = accountant, widening: int = 1) -> float:
        return spent_epsilon(noise_multiplier, sample_rate, steps, delta, method, widening * pld_interval(epsilon))

    if accountant == "pld":
        found = _by_wider_bins(lambda noise, times: spent(noise, "pld", times), epsilon, delta, sample_rate, steps)
        if found:
            return found
    low, high = _cheap_bracket(lambda value: spent(value, "rdp"), epsilon)
    unreachable = ValueError(f"no noise multiplier up to 1e5 gives epsilon {epsilon:g} after {steps} steps")
    if accountant == "rdp" and high > _LARGEST_NOISE:
        raise unreachable
    if accountant != "rdp":
        # Renyi accounting is never below the truth, and sampling never costs: each gives an upper end of the search.
        if high > _LARGEST_NOISE:
            high, proof = min(_unsampled_noise(epsilon, delta, steps), _LARGEST_NOISE), "the closed form"
        else:
            high, proof = _root(lambda value: spent(value, "rdp"), epsilon, low, high, 0.01), "'rdp'"
        start, tries = high, 0
        while (cost := spent(high)) > epsilon:
            if high >= _LARGEST_NOISE:
                raise unreachable
            if tries == 4 or math.isinf(cost):
                raise ValueError(
                    f"accountant {accountant!r} does not resolve epsilon {epsilon:g} at delta {delta:g}: it finds "
                    f"{cost:g} at noise multiplier {high:g}, where {proof} needs {start:g}"
                )
            high, tries = 1.03 * high, tries + 1
        low, high = _lower_end(spent, epsilon, 0.9 * high, high, 0.9)
    noise_multiplier = _root(spent, epsilon, low, high, _NOISE_STEP / 4)
    noise_multiplier = _upwards(noise_multiplier)
    for tries in range(40):
        cost = spent(noise_multiplier)
        if cost <= epsilon:
            return noise_multiplier, cost
        noise_multiplier = round(noise_multiplier + _NOISE_STEP * 2 ** max(0, tries - 4), 5)
    raise ValueError(f"accountant {accountant!r} does not settle on a noise multiplier for epsilon {epsilon:g}")


def _by_wider_bins(
    spent: Callable[[float, int], float], epsilon: float, delta: float, sample_rate: float, steps: int
) -> tuple[float, float] | None:
    """Return the least noise multiplier and its cost, found with as few fine evaluations as will do.

    Wider bins cost a fraction and say where to look: the bound exceeds its limit by about the square of their width.
    Only what the fine bound has confirmed is returned.

    Args:
        spent: The cost of a noise multiplier with bins so many times as wide.
        epsilon: The budget.
        delta: As for `calibrate_noise_multiplier`.
        sample_rate: As there.
        steps: As there.

    Returns:
        None where this does not lead to it.
    """
    slope = -2.0  # of log epsilon against log noise

    def gap(widening: int) -> float:
        return math.log(spent(math.exp(log_noise), widening) / epsilon)

    try:
        log_delta = -2 * math.log(delta)
        shift = math.sqrt(log_delta + 2 * epsilon) - math.sqrt(log_delta)  # of one Gaussian mechanism, about
        # Poisson-sampled steps in the limit of many (Bu et al., arXiv 1911.11607).
        log_noise = -0.5 * math.log(math.log1p(shift**2 / (sample_rate**2 * steps)))
        before = gap(40)
        for _ in range(12):
            move = max(-1.0, min(-before / slope, 1.0))
            log_noise += move
            now = gap(40)
            if abs(move) < 1e-6 or not -50 < (now - before) / move < -0.1:
                break
            slope, before = (now - before) / move, now
            if abs(now) < 2e-2:
                break
        before = gap(10)
        log_noise -= before / slope
        medium, fine = gap(10), gap(5)
        if abs(before) > 1e-4:
            slope *= (before - medium) / before
        log_noise -= (fine - (medium - fine) * (25 - 1) / (100 - 25)) / slope
        too_low, noise = 0.0, _upwards(math.exp(log_noise))
        for _ in range(6):
            if not _LEAST_NOISE <= noise <= _LARGEST_NOISE:
                return None
            cost = spent(noise, 1)
            least = _upwards(noise * math.exp(-math.log(cost / epsilon) / slope))
            if cost > epsilon:
                too_low = noise
            elif least >= noise or too_low >= noise - 1.5 * _NOISE_STEP:
                return noise, cost
            noise = max(least, round(too_low + _NOISE_STEP, 5))
    except (ValueError, ArithmeticError):
        pass
    return None


def _upwards(noise_multiplier: float) -> float:
    return round(math.ceil(noise_multiplier / _NOISE_STEP) * _NOISE_STEP, 5)


def _cheap_bracket(spent: Callable[[float], float], epsilon: float) -> tuple[float, float]:
    """Return noise multipliers that spend more and at most epsilon; the second exceeds 1e5 if none up to it does."""
    low, high = 0.5, 1.0
    while high <= _LARGEST_NOISE and spent(high) > epsilon:
        low, high = high, 2 * high
    return _lower_end(spent, epsilon, low, high, 0.5)


def _lower_end(
    spent: Callable[[float], float], epsilon: float, low: float, high: float, factor: float
) -> tuple[float, float]:
    """Lower both ends until the lower one spends more than epsilon; raises ValueError at 0.01."""
    tries = 0
    while spent(low := max(low, _LEAST_NOISE)) <= epsilon:
        if low == _LEAST_NOISE:
            raise ValueError(f"no noise multiplier down to {_LEAST_NOISE:g} spends epsilon {epsilon:g}")
        tries += 1
        low, high = low * (factor if tries < 12 else 0.5), low
    return low, high


def _unsampled_noise(epsilon: float, delta: float, steps: int) -> float:
    """Return the noise multiplier that spends epsilon without sampling: steps add up to one Gaussian mechanism."""
    from scipy.optimize import brentq

    from libscores.one_step import gaussian_epsilon

    def gap(log_noise: float) -> float:
        alone = gaussian_epsilon(np.array(math.exp(log_noise) / math.sqrt(steps)), delta)
        return math.log(max(float(alone), 1e-300)) - math.log(epsilon)

    low, high = math.log(1e-3), math.log(1e200)
    return math.exp(brentq(gap, low, high, xtol=1e-3)) if gap(high) < 0 < gap(low) else math.inf


def pld_interval(epsilon: float) -> float:
    """Return a bin width that keeps the "pld" bound within about 0.1 % of an epsilon of this size."""
    return 1e-4 * max(0.1, min(epsilon, 10), epsilon / 10)


def _root(spent: Callable[[float], float], epsilon: float, low: float, high: float, tolerance: float) -> float:
    """Return a noise multiplier near the one that spends epsilon, searched in logarithms."""
    from scipy.optimize import brentq

    def gap(value: float) -> float:
        return math.log(max(spent(math.exp(value)), 1e-12)) - math.log(epsilon)

    ends = [(math.log(value), gap(math.log(value))) for value in (low, high)]
    if ends[1][1] >= 0 or ends[0][1] <= 0:
        return high
    return math.exp(brentq(gap, ends[0][0], ends[1][0], xtol=tolerance / high, rtol=1e-12, disp=False))


def _pld_epsilon(noise: float, sample_rate: float, steps: int, delta: float, interval: float) -> float:
    return float(_run_pld(noise, sample_rate, steps, interval).get_epsilon_for_delta(delta))


def total_variation(noise_multiplier: float, sample_rate: float, steps: int, interval: float = 1e-3) -> float:
    """Return an upper bound on the total variation between training with and without an example.

    That is delta at epsilon = 0 of the privacy loss distribution of all steps, the larger of both directions: no
    function of the trained weights with values in [0, 1] differs by more in expectation.

    Args:
        noise_multiplier: Standard deviation of the noise over the clipping norm, > 0.
        sample_rate: Probability q that an example is in a batch, 0 < q <= 1.
        steps: Number of steps, empty batches included, >= 0.
        interval: Width of a bin of the privacy loss; a wider one is faster and gives a larger bound.

    Raises:
        ValueError: An argument is out of range.
    """
    _check(sample_rate, steps, 0.5, "pld", noise_multiplier=noise_multiplier)
    return (
        min(1.0, float(_run_pld(noise_multiplier, sample_rate, steps, interval).get_delta_for_epsilon(0.0)))
        if steps
        else 0.0
    )


def _run_pld(noise: float, sample_rate: float, steps: int, interval: float):
    # A step's largest loss is that of an output ten deviations off.
    unsampled = math.log(sample_rate) + (1 + 20 * noise) / (2 * noise**2)
    largest_loss = float(np.logaddexp(math.log(1 - sample_rate), unsampled)) if sample_rate < 1 else unsampled
    interval = max(interval, largest_loss / _PLD_BINS)
    return _step_pld(noise, sample_rate, interval).self_compose(steps)


@lru_cache(maxsize=2)
def _step_pld(noise_multiplier: float, sample_rate: float, interval: float):
    from dp_accounting.pld import privacy_loss_distribution

    return privacy_loss_distribution.from_gaussian_mechanism(
        noise_multiplier, sampling_prob=sample_rate, value_discretization_interval=interval
    )


def _rdp_epsilon(noise: float, sample_rate: float, steps: int, delta: float, _: float) -> float:
    import dp_accounting
    from dp_accounting.rdp import RdpAccountant

    step = dp_accounting.PoissonSampledDpEvent(sample_rate, dp_accounting.GaussianDpEvent(noise))
    return float(RdpAccountant(RDP_ORDERS).compose(step, steps).get_epsilon(delta))


def _prv_epsilon(noise: float, sample_rate: float, steps: int, delta: float, _: float) -> float:
    from opacus.accountants import PRVAccountant

    class Bounded(PRVAccountant):
        def _get_domain(self, **arguments: Any) -> Any:
            domain = super()._get_domain(**arguments)
            if domain.size > _PRV_POINTS:
                raise ValueError(f"it would take {domain.size} points, more than {_PRV_POINTS}; take 'pld'")
            return domain

    prv = Bounded()
    prv.history = [(noise, sample_rate, steps)]
    return float(prv.get_epsilon(delta))


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
