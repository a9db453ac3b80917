"""Intervals of medians against binomial probabilities and simulated coverage; intervals of what is bounded."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from libscores.few_runs import growth_with_runs, median_over_runs_and_points
from libscores.link1 import link1
from libscores.link2 import seed_means
from libscores.link3 import private_memorization
from libscores.ranking import RANK_METRICS, Runs, compare_runs, pair_interval, trajectory_similarity
from libscores.statistics import (
    CORRELATION,
    NOT_NEGATIVE,
    SHARE,
    SIMILARITIES,
    UNBOUNDED,
    Estimate,
    bootstrap_interval,
    jackknife_interval,
    median_interval,
)


@pytest.mark.parametrize("n", [6, 25, 1000])
def test_median_interval_is_between_order_statistics_with_exact_coverage(n: int) -> None:
    values = np.random.default_rng(n).normal(size=n)
    found = median_interval(values)
    ordered = np.sort(values)
    low, high = int(np.searchsorted(ordered, found.low)), int(np.searchsorted(ordered, found.high))
    assert ordered[low] == found.low and ordered[high] == found.high and found.value == np.median(values)
    # The median lies between them unless at most `low`, or more than `high`, values are below it.
    inside = sum(math.comb(n, k) for k in range(low + 1, high + 1)) / 2**n
    narrower = sum(math.comb(n, k) for k in range(low + 2, high)) / 2**n
    assert inside >= 0.95 > narrower


def test_median_interval_of_too_few_values_is_undefined() -> None:
    found = median_interval(np.arange(5.0))
    assert found.value == 2 and math.isnan(found.low) and math.isnan(found.high)


def within(estimate: Estimate, low: float, high: float) -> bool:
    """Whether the value lies in its interval (where there is one) and both in [low, high]."""
    if math.isnan(estimate.low):
        return math.isnan(estimate.high) and not estimate.value < low and not estimate.value > high
    return low <= estimate.low <= estimate.value <= estimate.high <= high


@settings(deadline=None, max_examples=200)
@given(
    value=st.floats(-1, 1),
    resampled=st.lists(st.floats(-1, 1) | st.just(math.nan), max_size=8),
    n_runs=st.none() | st.integers(1, 12),
    bounds=st.sampled_from([CORRELATION, SHARE, NOT_NEGATIVE, UNBOUNDED]),
)
def test_cut_intervals_hold_the_possible_values_of_the_uncut_ones(value, resampled, n_runs, bounds) -> None:
    value = max(value, bounds[0])
    drawn = np.array(resampled, dtype=float)
    pairs = [[bootstrap_interval(value, drawn, n_runs, limits) for limits in (bounds, UNBOUNDED)]]
    if len(drawn) > 1:
        pairs.append([jackknife_interval(value, drawn, limits) for limits in (bounds, UNBOUNDED)])
    for cut, uncut in pairs:
        assert within(cut, *bounds)
        for possible in np.linspace(*np.clip(bounds, -2, 2), 41):
            assert (cut.low <= possible <= cut.high) == (uncut.low <= possible <= uncut.high)


@settings(deadline=None, max_examples=25, phases=[Phase.generate])
@given(seed=st.integers(0, 2**32 - 1), n_runs=st.integers(2, 6), noise=st.sampled_from([0.0, 1e-9, 0.05, 3.0]))
def test_every_bounded_statistic_has_an_interval_of_possible_values(seed: int, n_runs: int, noise: float) -> None:
    rng = np.random.default_rng(seed)
    truth = rng.random(12)

    def noisy(*shape: int) -> np.ndarray:
        return truth + noise * rng.random((*shape, truth.size))

    masks = np.array([rng.permutation(12) < 6 for _ in range(n_runs)])
    masks[0], masks[1] = np.arange(12) < 6, np.arange(12) >= 6
    mem, curvature = np.clip(noisy(), 0, 1), noisy(n_runs)
    values = np.clip(masks * truth + noise * rng.random(masks.shape), 0, 1)
    runs = list(zip(masks, values, curvature, strict=True))
    ensemble = link1(lambda: runs, n_runs, 12, n_permutations=9)
    given_scores = link1(lambda: runs, n_runs, 12, memorization=mem, n_permutations=9)
    correlations = [ensemble.links["curvature"].disjoint_halves]
    for found in (ensemble, given_scores):
        correlations += [*found.links["curvature"].similarity.values(), *found.similarity_max.values()]
        assert within(found.subpopulation_a, 0, math.inf) and within(found.subpopulation_b, 0, math.inf)

    costs, steps = noisy(n_runs), noisy(n_runs, 4)
    correct, accuracy = (rng.random(steps.shape) < 0.99).astype(float), 1 - noise * rng.random(n_runs) / 10
    before = Runs(costs, noisy(n_runs), steps, correct, accuracy)
    after = Runs(noisy(n_runs), noisy(n_runs), noisy(n_runs, 4), np.ones_like(correct), accuracy[::-1])
    table = compare_runs(before, after, paired=True, n_resamples=20)
    unpaired = compare_runs(before, after, paired=False, n_resamples=20)
    agreement = [
        (name, one) for found in (table, unpaired) for name, one in found.items() if name.startswith(RANK_METRICS)
    ]
    pair = pair_interval(*costs[:2])
    correlations += [pair["spearman"], pair["kendall"], table["accuracy_change"]]
    correlations += [one for name, one in agreement if not name.startswith("mean_rank_shift")]
    correlations += [table[name] for name in ("trajectory_cosine", "trajectory_correlation")]
    for name in ("correctness_agreement", "accuracy_before", "accuracy_after"):
        assert within(table[name], 0, 1), name
    shifts = [one for name, one in agreement if name.startswith("mean_rank_shift")]
    assert len(agreement) == 2 * len(RANK_METRICS) * 5 and len(shifts) == 2 * 5
    for positive in (pair["mean_rank_shift"], *shifts, table["trajectory_distance"]):
        assert within(positive, 0, math.inf)
    sensitivity = np.clip(noisy(n_runs, 4), 0, 1)
    growth = growth_with_runs(sensitivity, np.ones(4), 0.1, 1.0, 8, 1e-5)
    assert all(within(share, 0, 1) for share in growth.share)
    for positive in (*growth.epsilon, median_over_runs_and_points(costs)):
        assert within(positive, 0, math.inf)

    private = private_memorization(masks, values)
    correlations += [private.mean, private.shuffled]
    for estimate in correlations:
        assert within(estimate, -1, 1), estimate
    assert all(within(mean, 0, math.inf) for mean in seed_means(noise * rng.random((3, n_runs)), NOT_NEGATIVE))


@settings(deadline=None)
@given(st.lists(st.floats(-1e6, 1e6, allow_subnormal=False), min_size=3, max_size=20))
def test_similarities_never_leave_the_possible_by_rounding(values: list[float]) -> None:
    a = np.array(values)
    for similarity in SIMILARITIES.values():
        for b in (a, -a, 3 * a + 0.1):
            assert not abs(similarity(a, b)) > 1
    similar = trajectory_similarity(a[:, None], 3 * a[:, None] + 0.1)
    assert not abs(similar.cosine[0]) > 1 and not abs(similar.correlation[0]) > 1
