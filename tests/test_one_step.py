"""One-step guarantees against enumeration of batches and integrals of the mechanism."""

from __future__ import annotations

import itertools
import math

import dp_accounting
import numpy as np
import pytest
from dp_accounting.pld import privacy_loss_distribution
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import special, stats

from libscores import one_step, renyi


def log_mixture(x: np.ndarray, means: np.ndarray, chance: np.ndarray, std: float) -> np.ndarray:
    return special.logsumexp(stats.norm.logpdf(x[:, None], means, std) + np.log(chance), axis=1)


def subsets(values: np.ndarray) -> np.ndarray:
    """Return the mean of every subset but the empty one, whose update is 0."""
    masks = np.array(list(itertools.product([0, 1], repeat=values.size)), dtype=float)
    return masks @ values / np.maximum(masks.sum(axis=1), 1)


def quadrature(log_p: np.ndarray, log_q: np.ndarray, order: float, width: float) -> float:
    return float(special.logsumexp(order * log_p - (order - 1) * log_q) + math.log(width)) / (order - 1)


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("std", [0.4, 1.0])
def test_mean_rule_bounds_the_divergence_of_all_batches(order, std):
    """At sampling rate 1/2 all batches are equally likely, so every tuple of them can be enumerated."""
    others, point = np.array([0.3, -0.8, 0.6]), 1.0
    without = subsets(others)
    with_point = subsets(np.append(others, point))
    tuples = np.array(list(itertools.product(with_point, repeat=order)))
    inner = one_step.mean_rule_divergence(
        np.broadcast_to(tuples[None, :, :, None], (without.size, *tuples.shape, 1)), without[:, None], std
    )
    x = np.linspace(-12, 12, 20001)
    log_p = log_mixture(x, with_point, np.full(with_point.size, 1 / with_point.size), std)
    each = [quadrature(log_p, stats.norm.logpdf(x, mean, std), order, x[1] - x[0]) for mean in without]
    np.testing.assert_allclose(inner, each, rtol=1e-8)
    log_q = log_mixture(x, without, np.full(without.size, 1 / without.size), std)
    true = quadrature(log_p, log_q, order, x[1] - x[0])
    assert 0 < true <= inner.mean()


def all_batches(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return sums and sizes of every subset."""
    masks = np.array(list(itertools.product([0, 1], repeat=values.size)), dtype=float)
    return masks @ values, masks.sum(axis=1)


@pytest.mark.parametrize("order", [2, 5])
@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_coupled_bound_holds_for_all_batches(order, rate):
    """The others join with probability 1/2, so their batches are equally likely; the point joins at its own rate."""
    others, point, std = np.array([0.3, -0.8, 0.6, 0.2]), 1.0, 0.3
    sums, sizes = all_batches(others)
    step = one_step.mean_rule_step(sums[:, None], sizes, np.array([point]), rate, std, order, 2, 0)
    without, joined = sums / np.maximum(sizes, 1), (sums + point) / (sizes + 1)
    np.testing.assert_allclose(step.shift, np.abs(joined - without), rtol=1e-12)
    x, chance = np.linspace(-8, 8, 40001), np.full(sums.size, 1 / sums.size)
    log_q = log_mixture(x, without, chance, std)
    parts = np.concatenate([without, joined]), np.concatenate([(1 - rate) * chance, rate * chance])
    true = quadrature(log_mixture(x, *parts, std), log_q, order, x[1] - x[0])
    bound, error = one_step.coupled_mean_rule_divergence(step.coupled, order)
    assert 0 < true <= bound and error > 0
    for batch in range(sums.size):
        pair = np.array([without[batch], joined[batch]])
        log_p = log_mixture(x, pair, np.array([1 - rate, rate]), std)
        each = quadrature(log_p, stats.norm.logpdf(x, without[batch], std), order, x[1] - x[0])
        assert step.coupled[batch] == pytest.approx(each, rel=1e-8)


def test_strata_of_tuples_estimate_the_inner_expectation():
    """Beside all ordered triples of distinct batches, each with or without the point."""
    order, rate, std, generator = 3, 0.2, 1.5, np.random.default_rng(3)
    sums, sizes, point = generator.normal(size=(6, 2)), np.arange(6), np.array([0.4, -0.3])
    without = sums / np.maximum(sizes, 1)[:, None]
    joined = (sums + point) / (sizes + 1)[:, None]
    found = one_step.mean_rule_step(sums, sizes, point, rate, std, order, 50_000, 1).theorem
    for batch in range(6):
        total, count = 0.0, 0
        for chosen in itertools.permutations(sorted({*range(6)} - {batch}), order):
            count += 1
            for held in itertools.product([0, 1], repeat=order):
                u = [(joined if h else without)[i] - without[batch] for h, i in zip(held, chosen, strict=True)]
                pairs = sum(float(a @ b) for a, b in itertools.combinations(u, 2))
                total += rate ** sum(held) * (1 - rate) ** (order - sum(held)) * math.exp(pairs / std**2)
        assert math.exp(found[batch] * (order - 1)) == pytest.approx(total / count, rel=0.02)


def test_a_point_without_gradient_still_dilutes_the_mean():
    sums, sizes = np.array([[3.0], [0.0], [5.0]]), np.array([3, 0, 5])
    step = one_step.mean_rule_step(sums, sizes, np.zeros(1), 0.5, 1.0, 2, 1, 0)
    np.testing.assert_allclose(step.shift, [1 / 4, 0, 1 / 6], rtol=1e-12)
    nothing = one_step.mean_rule_step(0 * sums, sizes, np.zeros(1), 0.5, 1.0, 2, 1, 0)
    assert not nothing.shift.any() and not nothing.coupled.any() and not nothing.theorem.any()


@given(hnp.arrays(np.float64, (5, 9), elements=st.floats(-10, 10)))
def test_fewer_coordinates_keep_inner_products(vectors):
    short = one_step.same_inner_products(vectors)
    assert short.shape == (5, 5)
    np.testing.assert_allclose(short @ short.T, vectors @ vectors.T, atol=1e-9)


def test_mean_rule_exponent_is_the_published_one():
    generator = np.random.default_rng(0)
    updates, update, order, std = generator.normal(size=(2, 5, 4, 6)), generator.normal(size=(2, 6)), 4, 1.7
    expected = np.empty(2)
    for row in range(2):
        exponents = []
        for u in updates[row]:
            first = np.square(u).sum() - (order - 1) * np.square(update[row]).sum()
            exponents.append(-(first - np.square(u.sum(axis=0) - (order - 1) * update[row]).sum()) / (2 * std**2))
        expected[row] = (special.logsumexp(exponents) - math.log(5)) / (order - 1)
    np.testing.assert_allclose(one_step.mean_rule_divergence(updates, update, std), expected, rtol=1e-12)


@pytest.mark.parametrize("delta", [1e-10, 1e-5, 0.1])
def test_gaussian_epsilon_agrees_with_dp_accounting(delta):
    z = np.array([0.1, 0.5, 1.0, 5.0, 100.0])
    expected = [dp_accounting.get_epsilon_gaussian(value, delta) for value in z]
    np.testing.assert_allclose(one_step.gaussian_epsilon(z, delta), expected, rtol=1e-6, atol=1e-9)
    assert one_step.gaussian_epsilon(np.array([math.inf]), delta) == 0
    assert np.all(one_step.gaussian_epsilon(z, 2.0) == 0)


def test_classical_gaussian_epsilon_is_no_guarantee_at_little_noise():
    """The published code takes sqrt(2 ln(1.25/delta))/z for every z."""
    z, delta = np.array([0.3, 1.0]), 1e-5
    classical = math.sqrt(2 * math.log(1.25 / delta)) / z
    exact = one_step.gaussian_epsilon(z, delta)
    assert classical[0] < exact[0]
    assert classical[1] > exact[1]


def delta_at(epsilon: float, log_p: np.ndarray, log_q: np.ndarray, width: float) -> float:
    return float(np.maximum(np.exp(log_p) - np.exp(epsilon + log_q), 0).sum() * width)


@pytest.mark.parametrize(
    ("q", "sigma", "delta"), [(0.05, 0.6, 1e-5), (0.3, 1.0, 1e-4), (1.0, 2.0, 1e-5), (0.01, 3.0, 1e-6)]
)
def test_one_step_epsilon_holds_for_the_mechanism(q, sigma, delta):
    """Batches whose update moves by different amounts when the point joins."""
    updates, shifts = np.array([-1.0, 0.0, 0.7, 2.0]), np.array([0.1, 0.3, 0.5, 1.0])
    quarter = np.full(4, 0.25)
    x = np.linspace(-14 * sigma - 2, 14 * sigma + 4, 200001)
    log_q = log_mixture(x, updates, quarter, sigma)
    parts = np.concatenate([updates, updates + shifts]), np.concatenate([(1 - q) * quarter, q * quarter])
    log_p = log_mixture(x, *parts, sigma) if q < 1 else log_mixture(x, updates + shifts, quarter, sigma)
    epsilon, _ = one_step.one_step_epsilon(shifts[:, None], q, sigma, delta)
    assert delta_at(epsilon[0], log_p, log_q, x[1] - x[0]) <= delta * (1 + 1e-6)
    worst, exponent = one_step.one_step_epsilon(np.ones((4, 1)), q, sigma, delta)
    assert epsilon[0] <= worst[0]
    assert exponent[0] == math.inf


def test_one_step_epsilon_of_equal_sensitivities_is_amplification_by_sampling():
    """ln(1 + q (e^epsilon - 1)) at delta / q, what dp-accounting's integral over the mixture gives exactly."""
    q, sigma, delta = 0.02, 0.8, 1e-5
    found, _ = one_step.one_step_epsilon(np.ones((1, 1)), q, sigma, delta)
    inner = dp_accounting.get_epsilon_gaussian(sigma, delta / q)
    assert found[0] == pytest.approx(math.log1p(q * math.expm1(inner)), rel=1e-6)
    assert one_step.one_step_epsilon(np.zeros((3, 2)), q, sigma, delta)[0] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("s", [0.05, 0.5, 1.0])
def test_sum_rule_epsilon_agrees_with_privacy_loss_distributions(s):
    q, sigma, delta = 0.02, 0.8, 1e-5
    loss = privacy_loss_distribution.from_gaussian_mechanism(
        sigma / s, sampling_prob=q, value_discretization_interval=1e-4
    )
    expected = loss.get_epsilon_for_delta(delta)
    found = float(one_step.sum_rule_epsilon(np.array(s), q, sigma, delta))
    assert found == pytest.approx(expected, rel=1e-3, abs=2e-4)
    assert found == pytest.approx(float(one_step.one_step_epsilon(np.array([[s]]), q, sigma, delta)[0][0]), rel=1e-9)


def test_one_step_epsilon_gains_from_batches_that_move_little():
    s = np.full((100000, 1), 0.01)
    s[0] = 1.0
    mixed, exponent = one_step.one_step_epsilon(s, 0.1, 1.0, 1e-3)
    largest, _ = one_step.one_step_epsilon(np.ones((1, 1)), 0.1, 1.0, 1e-3)
    assert mixed[0] < 0.8 * largest[0]
    assert math.isfinite(exponent[0])


def test_sum_rule_divergence_is_the_mean_rule_one_with_constant_shift():
    """With one batch without the point, both bounds are the divergence itself."""
    q, sigma, s, order = 0.5, 1.3, 0.6, 3
    tuples = np.array(list(itertools.product([0.0, s], repeat=order)))[None, :, :, None]
    found = one_step.mean_rule_divergence(tuples, np.zeros((1, 1)), sigma)
    assert found[0] == pytest.approx(float(renyi.step_divergence(s, q, sigma, order)), rel=1e-12)


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="a >= 2"):
        one_step.mean_rule_divergence(np.zeros((1, 1, 1, 1)), np.zeros((1, 1)), 1.0)
    with pytest.raises(ValueError, match="noise_std"):
        one_step.mean_rule_divergence(np.zeros((1, 1, 2, 1)), np.zeros((1, 1)), 0.0)
    with pytest.raises(ValueError, match="add up to 1"):
        one_step.mean_rule_divergence(np.zeros((1, 2, 2, 1)), np.zeros((1, 1)), 1.0, np.array([0.5, 0.6]))
    with pytest.raises(ValueError, match="more than 3 batches"):
        one_step.mean_rule_step(np.zeros((3, 1)), np.ones(3), np.zeros(1), 0.5, 1.0, 3, 1, 0)
    with pytest.raises(ValueError, match="non-negative"):
        one_step.one_step_epsilon(np.array([[-1.0]]), 0.1, 1.0, 1e-5)
    with pytest.raises(ValueError, match="sample_rate"):
        one_step.one_step_epsilon(np.array([[1.0]]), 0.0, 1.0, 1e-5)
    with pytest.raises(ValueError, match="positive"):
        one_step.gaussian_epsilon(np.array([0.0]), 1e-5)
