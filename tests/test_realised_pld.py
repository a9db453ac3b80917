"""Realised epsilon by privacy loss distributions, against dp-accounting and integrals of single steps."""

from __future__ import annotations

import math

import numpy as np
import pytest
from dp_accounting.pld import privacy_loss_distribution
from scipy import stats

from libscores import realised_pld, renyi
from libscores.accounting import spent_epsilon

DELTA = 1e-5


@pytest.mark.parametrize(("q", "sigma", "steps"), [(0.032, 0.74392, 625), (0.3, 3.0, 20), (1.0, 5.0, 10)])
def test_full_sensitivity_is_what_the_training_was_calibrated_to(q, sigma, steps):
    found = realised_pld.realised_pld_epsilon(np.ones((1, 3, 2)), q, sigma, DELTA, np.full(3, steps / 3))
    assert found.shape == (1, 2)
    np.testing.assert_allclose(found, spent_epsilon(sigma, q, steps, DELTA, "pld", 1e-4), rtol=1e-3)


def test_steps_of_different_sensitivity_are_composed_as_dp_accounting_composes_them():
    q, sigma, nodes = 0.1, 1.2, realised_pld.sensitivity_nodes()
    chosen = nodes[[-1, -20, -60, -100]]
    times = [30, 50, 70, 90]
    composed = None
    for s, count in zip(chosen, times, strict=True):
        one = privacy_loss_distribution.from_gaussian_mechanism(
            sigma / s, sampling_prob=q, value_discretization_interval=1e-4
        ).self_compose(count)
        composed = one if composed is None else composed.compose(one)
    expected = composed.get_epsilon_for_delta(DELTA)
    found = realised_pld.realised_pld_epsilon(chosen[None, :, None], q, sigma, DELTA, np.array(times, dtype=float))
    assert found[0, 0] == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("s", [0.05, 1.0])
def test_loss_of_one_step_dominates_its_mechanism_closely(s, reverse):
    """Delta at any epsilon, integrated over outcomes, is never above that of the grid, and a bin's square below."""
    q, sigma, interval = 0.05, 0.7, 1e-3
    first, chance = realised_pld.step_loss(s, q, sigma, interval, reverse)
    losses = (first + np.arange(chance.size)) * interval
    assert chance.sum() == pytest.approx(1, abs=1e-12) and chance.min() >= 0
    z = np.linspace(-9 * sigma, 9 * sigma + s, 400001)
    base = stats.norm.pdf(z, 0, sigma)
    mixed = (1 - q) * base + q * stats.norm.pdf(z, s, sigma)
    p, other = (base, mixed) if reverse else (mixed, base)
    for epsilon in (0.0, 0.0004, 0.01, 0.03, 0.5, 2.0):
        exact = float(np.maximum(p - math.exp(epsilon) * other, 0).sum() * (z[1] - z[0]))
        grid = float((np.maximum(1 - np.exp(epsilon - losses), 0) * chance).sum())
        assert grid >= exact - 1e-10
        assert grid <= exact + interval**2 + 1e-10 + 0.3 * interval * (epsilon < 0.01)


def trajectories(points: int = 12) -> np.ndarray:
    generator = np.random.default_rng(3)
    return np.minimum(1, np.exp(generator.normal(-1, 1.2, points) + generator.normal(0, 0.5, (2, 6, points))))


@pytest.mark.parametrize("reverse", [False, True])
def test_loss_distributions_are_tighter_than_renyi_orders_and_not_below_the_truth(reverse):
    s, weights = trajectories(), np.array([3.2, 100, 100.5, 60, 40, 20.3])
    q, sigma = 0.05, 0.8
    found = realised_pld.realised_pld_epsilon(s, q, sigma, DELTA, weights, reverse)
    bound = renyi.realised_epsilons(s, q, sigma, DELTA, weights, reverse)
    large = bound > 0.5
    assert large.sum() > 5 and np.all(found[large] < bound[large])
    if not reverse:
        nodes = realised_pld.sensitivity_nodes()
        lower = nodes[np.searchsorted(nodes, s) - 1]  # rounded down instead, and a step fewer
        least = realised_pld.realised_pld_epsilon(lower, q, sigma, DELTA, np.floor(weights))
        assert np.all(found >= least)
        assert np.median(found / least) < 1.06


def test_steps_are_counted_up_and_whole():
    position = np.array([[[3], [1], [3], [0]]])
    counts = realised_pld._whole_counts(position, np.array([0.5, 1.2, 0.7, 0.6]), 4)
    np.testing.assert_array_equal(counts[0, 0], [0, 1, 0, 2])  # 1.2 at 3 -> 2; 2.4 from 1 on -> 3; 3.0 in all
    assert counts.sum() == 3


def test_edges():
    zeros = realised_pld.realised_pld_epsilon(np.zeros((2, 3, 4)), 0.1, 1.0, DELTA)
    assert zeros.shape == (2, 4) and not zeros.any()
    for change, mention in (
        ({"delta": 1e-12}, "delta"), ({"sample_rate": 0.0}, "sample_rate"), ({"noise_multiplier": 0.0}, "noise"),
        ({"sensitivity": np.full((1, 1, 1), 1.5)}, "sensitivities"), ({"sensitivity": np.ones(3)}, "shape"),
    ):  # fmt: skip
        arguments = {"sensitivity": np.ones((1, 1, 1)), "sample_rate": 0.1, "noise_multiplier": 1.0, "delta": DELTA}
        with pytest.raises(ValueError, match=mention):
            realised_pld.realised_pld_epsilon(**(arguments | change))
