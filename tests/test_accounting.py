"""Privacy accounting against closed forms, quadrature and an independent accountant."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from opacus.accountants import PRVAccountant
from scipy.integrate import trapezoid
from scipy.optimize import brentq
from scipy.stats import norm

from libscores.accounting import ACCOUNTANTS, calibrate_noise_multiplier, pld_interval, spent_epsilon


def gaussian_epsilon(noise_multiplier: float, steps: int, delta: float) -> float:
    """Epsilon of composed Gaussian mechanisms without sampling (Balle, Wang 2018, arXiv 1805.06530, Theorem 8)."""
    mu = math.sqrt(steps) / noise_multiplier

    def excess(epsilon: float) -> float:
        log_tail = epsilon + norm.logcdf(-mu / 2 - epsilon / mu)
        return norm.cdf(mu / 2 - epsilon / mu) - math.exp(log_tail) - delta

    return brentq(excess, 0, 1e4)


def one_step_epsilon(noise_multiplier: float, sample_rate: float, delta: float) -> float:
    """Epsilon of one Poisson-sampled Gaussian step, from the definition by quadrature, the worse direction."""

    x = np.linspace(-12 * noise_multiplier, 1 + 12 * noise_multiplier, 400_001)
    alone = norm.pdf(x, 0, noise_multiplier)
    mixture = (1 - sample_rate) * alone + sample_rate * norm.pdf(x, 1, noise_multiplier)

    def excess(epsilon: float, p: np.ndarray, q: np.ndarray) -> float:
        return trapezoid(np.maximum(p - math.exp(epsilon) * q, 0), x) - delta

    pairs = [(p, q) for p, q in ((mixture, alone), (alone, mixture)) if excess(0, p, q) > 0]
    return max((brentq(excess, 0, 20, args=pair, xtol=1e-6) for pair in pairs), default=0.0)


@pytest.mark.parametrize(("noise", "steps"), [(1.0, 1), (4.0, 30), (0.7, 3)])
def test_without_sampling_pld_is_the_closed_form(noise: float, steps: int) -> None:
    want = gaussian_epsilon(noise, steps, 1e-5)
    got = spent_epsilon(noise, 1.0, steps, 1e-5)
    assert want - 1e-7 <= got <= want + 1e-3
    assert spent_epsilon(noise, 1.0, steps, 1e-5, "rdp") >= want


@pytest.mark.parametrize(("noise", "rate", "delta"), [(0.8, 0.3, 1e-4), (1.5, 0.05, 1e-5)])
def test_one_sampled_step_is_the_definition(noise: float, rate: float, delta: float) -> None:
    want = one_step_epsilon(noise, rate, delta)
    assert want - 1e-5 <= spent_epsilon(noise, rate, 1, delta) <= want + 1e-3
    assert spent_epsilon(noise, rate, 1, delta, "rdp") >= want


@pytest.mark.parametrize(("epsilon", "rate", "steps"), [(1, 0.032, 625), (5, 0.00512, 3906), (10, 0.1, 200)])
def test_calibrated_noise_spends_the_budget_by_an_independent_accountant(
    epsilon: float, rate: float, steps: int
) -> None:
    noise, spent = calibrate_noise_multiplier(epsilon, 1e-5, rate, steps)
    assert 0.999 * epsilon < spent <= epsilon
    assert spent == spent_epsilon(noise, rate, steps, 1e-5, interval=pld_interval(epsilon))
    other = PRVAccountant()
    for _ in range(steps):
        other.step(noise_multiplier=noise, sample_rate=rate)
    assert abs(other.get_epsilon(1e-5) - spent) < 0.02  # it adds its own error bound of 0.01


def check_least(epsilon: float, rate: float, steps: int, accountant: str) -> None:
    noise, spent = calibrate_noise_multiplier(epsilon, 1e-6, rate, steps, accountant)
    width = pld_interval(epsilon)
    assert spent <= epsilon and spent == spent_epsilon(noise, rate, steps, 1e-6, accountant, width)
    less = max(noise - 4e-5, noise / 2)
    assert spent_epsilon(less, rate, steps, 1e-6, accountant, width) > epsilon


@pytest.mark.parametrize(("epsilon", "rate", "steps"), [(0.5, 0.01, 40), (2, 1.0, 3), (60, 0.2, 50)])
def test_calibrated_noise_is_the_least(epsilon: float, rate: float, steps: int) -> None:
    check_least(epsilon, rate, steps, "pld")


@given(epsilon=st.floats(0.1, 1000), rate=st.floats(0.001, 1), steps=st.integers(1, 10**5))
@settings(max_examples=10, deadline=None, phases=[Phase.generate])
def test_calibrated_renyi_noise_is_the_least(epsilon: float, rate: float, steps: int) -> None:
    check_least(epsilon, rate, steps, "rdp")


@given(noise=st.floats(0.8, 5), rate=st.floats(0.01, 0.3), steps=st.integers(1, 200))
@settings(max_examples=10, deadline=None, phases=[Phase.generate])
def test_more_steps_and_less_noise_cost_more_and_renyi_is_looser(noise: float, rate: float, steps: int) -> None:
    width = 1e-3
    cost = spent_epsilon(noise, rate, steps, 1e-5, interval=width)
    assert spent_epsilon(noise, rate, steps + 1, 1e-5, interval=width) >= cost
    assert spent_epsilon(noise * 1.1, rate, steps, 1e-5, interval=width) <= cost
    assert spent_epsilon(noise, rate, steps, 1e-5, interval=2e-3) >= cost - 1e-9
    assert spent_epsilon(noise, rate, steps, 1e-5, "rdp") >= spent_epsilon(noise, rate, steps, 1e-5) - 1e-3


def test_edges() -> None:
    for accountant in ACCOUNTANTS:
        assert spent_epsilon(1.0, 0.1, 0, 1e-5, accountant) == 0
    assert spent_epsilon(200.0, 0.001, 1, 1e-2) == 0
    noise, spent = calibrate_noise_multiplier(2, 1e-5, 0.05, 100, "prv")
    assert spent <= 2 and abs(spent_epsilon(noise, 0.05, 100, 1e-5) - 2) < 0.02


@pytest.mark.parametrize(
    ("arguments", "mention"),
    [
        ((0.0, 0.1, 5, 1e-5), "noise_multiplier must be positive, found 0.0"),
        ((1.0, 0.0, 5, 1e-5), "sample_rate must be above 0 and at most 1, found 0.0"),
        ((1.0, 1.5, 5, 1e-5), "found 1.5"),
        ((1.0, 0.1, -1, 1e-5), "steps must not be negative, found -1"),
        ((1.0, 0.1, 5, 0.0), "delta must be between 0 and 1, found 0.0"),
        ((1.0, 0.1, 5, 1e-5, "moments"), "'moments'"),
    ],
)
def test_arguments_out_of_range_are_named(arguments: tuple, mention: str) -> None:
    with pytest.raises(ValueError, match=mention):
        spent_epsilon(*arguments)


def test_impossible_budgets_are_named() -> None:
    with pytest.raises(ValueError, match="epsilon must be positive, found -1"):
        calibrate_noise_multiplier(-1, 1e-5, 0.1, 10)
    with pytest.raises(ValueError, match="steps must be at least 1"):
        calibrate_noise_multiplier(1, 1e-5, 0.1, 0)
    with pytest.raises(ValueError, match="no noise multiplier"):
        calibrate_noise_multiplier(1e-9, 1e-12, 1.0, 10**6)
