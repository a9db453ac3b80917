"""Fractional orders, the direction without the point, and interpolation, against integrals and plain loops."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats

from libscores import renyi


def exact_moment(x: float, q: float, exponent: float) -> mpmath.mpf:
    """Integrate E (1 - q + q exp(r z - x/2))^exponent, z standard normal, with 30 digits."""
    with mpmath.workdps(30):
        r = mpmath.sqrt(x)

        def integrand(z):
            return mpmath.npdf(z) * (1 - q + q * mpmath.exp(r * z - mpmath.mpf(x) / 2)) ** exponent

        peak = max(exponent, 1) * r
        low = min(exponent, 0) * r if q == 1 else 0
        return mpmath.quad(integrand, [low - 25, low - 6, low, 1, peak / 2 + 2, peak + 6, peak + 25])


@pytest.mark.parametrize(("q", "sigma"), [(0.01, 0.6), (0.3, 2.0), (1.0, 1.5)])
def test_fractional_orders_are_integrals_in_both_directions(q, sigma):
    """Exact at s = 1, a node; elsewhere not below, and above by the width of the table."""
    orders = (1.01, 1.5, 2.3, 3.0, 7.5)
    for reverse, slack in ((False, 2e-3), (True, 1e-2)):
        found = np.array(list(renyi.divergence_at(np.array([1.0, 0.3712, 0.0]), q, sigma, orders, reverse)))
        assert np.all(found[:, 2] == 0)
        for order, row in zip(orders, found, strict=True):
            for s, value in zip((1.0, 0.3712), row[:2].tolist(), strict=True):
                moment = exact_moment((s / sigma) ** 2, q, 1 - order if reverse else order)
                exact = float(mpmath.log(moment)) / (order - 1)
                assert value >= exact * (1 - 1e-8)
                assert value <= exact * (1 + (1e-8 if s == 1 else slack))


def test_small_divergences_keep_their_precision():
    """To second order D is a q^2 (e^x - 1) / 2 in both directions, far below the rounding of a moment near 1."""
    q, s = 1e-4, 0.01
    for reverse in (False, True):
        for order, value in zip((1.5, 4.7), renyi.divergence_at(np.array(s), q, 1.0, (1.5, 4.7), reverse), strict=True):
            assert value == pytest.approx(order / 2 * q**2 * math.expm1(s**2), rel=1e-2 if reverse else 1e-5)


def test_interpolated_moments_are_bounds_between_the_nodes():
    s = np.random.default_rng(0).uniform(0, 1, 200)
    for order, value in zip((2, 5, 16), renyi.divergence_at(s, 0.01, 0.3, (2.0, 5.0, 16.0)), strict=True):
        exact = renyi.step_divergence(s, 0.01, 0.3, order)
        assert np.all(value >= exact * (1 - 1e-12))
        assert np.all(value <= exact * 1.01)
        assert np.any(value > exact * (1 + 1e-6))


@given(st.floats(1e-4, 1), st.floats(0.2, 10), st.floats(0, 1), st.integers(0, 3))
@settings(max_examples=12, deadline=None)
def test_without_the_point_costs_at_most_what_with_it_costs(q, sigma, s, which):
    """Theorem 5 of Mironov, Talwar and Zhang at equal norms, and the largest loss of that direction, -ln(1 - q)."""
    orders = (1.3, 2.0, 4.5, 9.0)
    one = list(renyi.divergence_at(np.array([s]), q, sigma, orders))[which]
    other = list(renyi.divergence_at(np.array([s]), q, sigma, orders, reverse=True))[which]
    assert other[0] <= one[0] * 1.01 + (renyi._LEAST_NODE / sigma) ** 2 * orders[which]
    assert q == 1 or other[0] <= -math.log1p(-q) * (1 + 1e-9)


def mixture(x: np.ndarray, means: np.ndarray, weights: np.ndarray, sigma: float) -> np.ndarray:
    return special.logsumexp(stats.norm.logpdf(x[:, None], means, sigma) + np.log(weights), axis=1)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("order", [1.5, 2, 6])
def test_reverse_divergence_is_never_below_the_true_one_of_a_step_with_other_points(seed, order):
    generator = np.random.default_rng(seed)
    q, sigma, s = generator.uniform(0.01, 0.9), generator.uniform(0.5, 3), generator.uniform(0, 1)
    sums, chance = generator.normal(0, 1.5, 6), generator.dirichlet(np.ones(6))
    x = np.linspace(sums.min() - 15 * sigma - order * s, sums.max() + 15 * sigma + order * s, 40001)
    base = mixture(x, sums, chance, sigma)
    mixed = mixture(x, np.concatenate([sums, sums + s]), np.concatenate([(1 - q) * chance, q * chance]), sigma)
    true = float(special.logsumexp(order * base - (order - 1) * mixed) + math.log(x[1] - x[0])) / (order - 1)
    (bound,) = renyi.divergence_at(np.array([s]), q, sigma, (float(order),), reverse=True)
    assert bound[0] >= true * (1 - 1e-9) - 1e-12


def test_reverse_bound_holds_for_two_adaptive_steps():
    """D(without || with) of a pair of outcomes, integrated; the runs without the point follow the base."""
    q, order = 0.3, 3
    x = np.linspace(-9, 9, 3001)
    log_base = stats.norm.logpdf(x)
    log_mixed = np.logaddexp(math.log(1 - q) + log_base, math.log(q) + stats.norm.logpdf(x, 1.0))
    second = 0.05 + 0.95 * special.expit((0.5 - x) / 0.3)
    z, step = np.linspace(-12, 12, 2001, retstep=True)
    u = np.log1p(q * np.expm1(second[:, None] * z - np.square(second)[:, None] / 2))
    inner = special.logsumexp(stats.norm.logpdf(z) + (1 - order) * u, axis=1) + math.log(step)
    terms = order * log_base + (1 - order) * log_mixed + inner
    exact = float(special.logsumexp(terms) + math.log(x[1] - x[0])) / (order - 1)
    runs = np.stack([np.ones_like(second), second], axis=1)[:, :, None]
    found = renyi.account(runs, np.array([0, 1]), 2, q, 1.0, order, 1e-5, reverse=True)
    assert found.composed[0] >= exact
    chance = np.exp(log_base) / np.exp(log_base).sum()
    assert 0.5 * exact < chance @ found.realised[:, 0] < exact


def test_first_step_lends_its_exponent_to_no_other():
    """Interpolated from step 0, later steps take p (a-1); the first alone takes a - 1."""
    s, steps = np.array([[0.1, 0.2], [1.0, 0.3]])[:, :, None], np.array([0, 10])
    weights = renyi.interpolation_weights(steps, 11)
    divergence = renyi.step_divergence(s[:, :, 0], 0.2, 0.7, 6)
    at_infinity = renyi.composed_cost(s, steps, 11, 0.2, 0.7, 6, math.inf, step_weights=weights)
    np.testing.assert_allclose(at_infinity[:, 0], divergence.max(axis=0))
    alone = renyi.composed_cost(s, steps, 11, 0.2, 0.7, 6, math.inf)
    assert alone[0, 0] == pytest.approx(math.log(np.exp(5 * divergence[:, 0]).mean()) / 5)
    assert alone[0, 0] < at_infinity[0, 0]
    assert renyi.compose(s, steps, 11, 0.2, 0.7, 6, weights).cost[0, 0] > alone[0, 0]


def test_error_of_interpolation_is_that_of_plain_loops():
    generator = np.random.default_rng(1)
    s = np.minimum(1, np.exp(np.cumsum(generator.normal(0, 0.3, (2, 41, 3)), axis=1) - 1))
    stages = np.array([0, 10, 25, 40])
    found = renyi.interpolation_error(s, stages, 0.05, 1.0, 4, 1e-5)
    for run, point in np.ndindex(2, 3):
        exact = [float(renyi.step_divergence(one, 0.05, 1.0, 4)) for one in s[run, :, point]]
        between = np.interp(np.arange(41), stages, np.array(exact)[stages])
        assert found.total[run, point] == pytest.approx(sum(between) / sum(exact) - 1, rel=1e-9)
        low, high = np.quantile(between / exact - 1, [0.025, 0.975])
        assert found.step_low[run, point] == pytest.approx(low, rel=1e-8)
        assert found.step_high[run, point] == pytest.approx(high, rel=1e-8)
    every = renyi.interpolation_error(s, np.arange(41), 0.05, 1.0, 4, 1e-5)
    np.testing.assert_allclose(every.total, 0, atol=1e-12)
    np.testing.assert_allclose(every.epsilon, 0, atol=1e-12)
    nothing = renyi.interpolation_error(0 * s, stages, 0.05, 1.0, 4, 1e-5)
    assert np.isnan(nothing.total).all() and np.isnan(nothing.step_low).all()


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="orders"):
        next(renyi.divergence_at(np.ones(1), 0.1, 1.0, (1.0,)))
    with pytest.raises(ValueError, match="sensitivity"):
        next(renyi.divergence_at(np.full(1, 1.1), 0.1, 1.0))
    (nothing,) = renyi.divergence_at(np.ones(2), 0.0, 1.0, (3.0,))
    assert not nothing.any()
