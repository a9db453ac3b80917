"""One-step guarantees against enumeration of batches and integrals of the mechanism."""

from __future__ import annotations

import itertools
import math

import dp_accounting
import numpy as np
import pytest
from dp_accounting.pld import privacy_loss_distribution
from scipy import special, stats

from libscores import one_step, renyi


def log_mixture(x: np.ndarray, means: np.ndarray, chance: np.ndarray, std: float) -> np.ndarray:
    return special.logsumexp(stats.norm.logpdf(x[:, None], means, std) + np.log(chance), axis=1)


def subsets(values: np.ndarray) -> np.ndarray:
    """Return the mean of every subset but the empty one, whose update is 0."""
    masks = np.array(list(itertools.product([0, 1], repeat=values.size)), dtype=float)
    return masks @ values / np.maximum(masks.sum(axis=1), 1)


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

    def divergence(log_q: np.ndarray) -> float:
        return float(special.logsumexp(order * log_p - (order - 1) * log_q) + math.log(x[1] - x[0])) / (order - 1)

    each = [divergence(stats.norm.logpdf(x, mean, std)) for mean in without]
    np.testing.assert_allclose(inner, each, rtol=1e-8)
    true = divergence(log_mixture(x, without, np.full(without.size, 1 / without.size), std))
    assert 0 < true <= inner.mean()


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


def test_mean_rule_sensitivity_is_the_shift_of_the_mean():
    gradients = np.random.default_rng(0).normal(size=(7, 5))
    found = one_step.mean_rule_sensitivity(gradients)
    for row in range(7):
        shift = np.linalg.norm(gradients.mean(axis=0) - np.delete(gradients, row, axis=0).mean(axis=0))
        assert found[row] == pytest.approx(shift, rel=1e-12)


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
    with pytest.raises(ValueError, match="at least 2"):
        one_step.mean_rule_sensitivity(np.zeros((1, 3)))
    with pytest.raises(ValueError, match="non-negative"):
        one_step.one_step_epsilon(np.array([[-1.0]]), 0.1, 1.0, 1e-5)
    with pytest.raises(ValueError, match="sample_rate"):
        one_step.one_step_epsilon(np.array([[1.0]]), 0.0, 1.0, 1e-5)
    with pytest.raises(ValueError, match="positive"):
        one_step.gaussian_epsilon(np.array([0.0]), 1e-5)
