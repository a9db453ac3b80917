"""What a handful of runs can say: growth of the largest, intervals that hold the runs, equivalence."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from libscores import few_runs, renyi

Q, SIGMA, DELTA = 0.05, 1.1, 1e-5


def trajectories(runs: int = 4, points: int = 15, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return np.minimum(1, np.exp(generator.normal(-1, 1, points) + generator.normal(0, 0.7, (runs, 6, points))))


def test_growth_averages_the_largest_of_all_subsets():
    """The rotations of 3 runs begin with every subset; each value is a plain maximum and sum."""
    s, weights = trajectories(3), np.array([1.0, 3, 4, 5, 6, 2])
    found = few_runs.growth_with_runs(s, weights, Q, SIGMA, 4, DELTA, n_subsets=3)
    worst = weights.sum() * float(renyi.step_divergence(1.0, Q, SIGMA, 4))
    for size, (share, epsilon) in enumerate(zip(found.share, found.epsilon, strict=True), start=1):
        shares, epsilons = [], []
        for subset in itertools.combinations(range(3), size):
            chosen = s[list(subset)]
            shares.append(np.median(weights @ renyi.step_divergence(chosen, Q, SIGMA, 4).max(axis=0)) / worst)
            totals = [weights @ d.max(axis=0) for d in renyi.divergence_at(chosen, Q, SIGMA)]
            epsilons.append(np.median(renyi.epsilon(np.array(totals), renyi.EPSILON_ORDERS, DELTA)[0]))
        assert share.value == pytest.approx(np.mean(shares), rel=1e-4)
        assert epsilon.value == pytest.approx(np.mean(epsilons), rel=0.01)
        assert share.low < share.value < share.high and epsilon.low < epsilon.value < epsilon.high
    values = [one.value for one in found.share]
    assert values == sorted(values) and values[0] < values[-1]


def test_growth_of_one_run_has_no_interval():
    found = few_runs.growth_with_runs(trajectories(1), np.ones(6), Q, SIGMA, 4, DELTA)
    assert len(found.share) == 1 and math.isnan(found.share[0].low)


@pytest.mark.parametrize("points", [1, 2, 4, 5])
def test_growth_with_a_few_points_or_equal_costs(points):
    """Of four points none lies strictly within the middle fifth."""
    for s in (trajectories(2, points), np.full((2, 6, points), 0.5), np.zeros((2, 6, points))):
        found = few_runs.growth_with_runs(s, np.ones(6), Q, SIGMA, 4, DELTA)
        divergences = renyi.divergence_at(s, Q, SIGMA)
        totals = np.array([divergence.max(axis=0).sum(axis=0) for divergence in divergences])
        epsilons, _ = renyi.epsilon(totals, renyi.EPSILON_ORDERS, DELTA)
        assert len(found.epsilon) == 2 and found.epsilon[-1].value == pytest.approx(np.median(epsilons), rel=0.01)


def test_intervals_hold_what_new_runs_give():
    """Studies of a few runs: the median share that many sets of as many runs give lies inside."""
    everything, generator = trajectories(200, 30), np.random.default_rng(1)
    divergence = renyi.step_divergence(everything, Q, SIGMA, 4)
    worst = 6 * float(renyi.step_divergence(1.0, Q, SIGMA, 4))
    inside = []
    for size in (2, 4):
        subsets = (generator.choice(200, size, replace=False) for _ in range(300))
        truth = np.mean([np.median(divergence[chosen].max(axis=0).sum(axis=0)) for chosen in subsets]) / worst
        for study in range(20):
            runs = everything[generator.choice(200, 4, replace=False)]
            one = few_runs.growth_with_runs(runs, np.ones(6), Q, SIGMA, 4, DELTA, n_subsets=4, seed=study)
            inside.append(one.share[size - 1].low <= truth <= one.share[size - 1].high)
    assert np.mean(inside) >= 0.9


@pytest.mark.parametrize("runs", [3, 8])
def test_median_holds_the_runs_share(runs):
    """A run shifts all points alike, which an interval over points alone would miss."""
    inside, alone = [], []
    for study in range(150):
        generator = np.random.default_rng(study)
        values = generator.normal(size=60) + 0.5 * generator.normal(size=(runs, 1))
        found = few_runs.median_over_runs_and_points(values)
        inside.append(found.low <= 0 <= found.high)
        alone.append(found.high - found.low)
    assert np.mean(inside) >= 0.9
    single = few_runs.median_over_runs_and_points(np.ones((1, 5)))
    assert single.value == 1 and math.isnan(single.low)


def test_difference_of_medians_holds_the_runs_share():
    """Each run shifts the two samples apart by a draw of its own: four runs' intervals hold 0 nearly always."""
    inside = []
    for study in range(150):
        generator = np.random.default_rng(study)
        a = generator.normal(size=40) + 0.5 * generator.normal(size=(4, 1))
        b = generator.normal(size=(4, 60))
        found = few_runs.median_difference_over_runs(a, b)
        inside.append(found.low <= 0 <= found.high)
    assert np.mean(inside) >= 0.9
    assert found.value == pytest.approx(np.median(a.mean(axis=0)) - np.median(b.mean(axis=0)))
    assert math.isnan(few_runs.median_difference_over_runs(np.ones((1, 3)), np.ones((1, 2))).low)


def test_larger_direction_goes_by_the_mean_over_runs():
    one, other = np.array([[1.0, 5], [3, 5]]), np.array([[5.0, 4], [0, 5]])
    np.testing.assert_array_equal(few_runs.larger_direction(one, other), [[5, 5], [0, 5]])
