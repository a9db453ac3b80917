"""Link 2's fits and trends against curves whose parameters are known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from libscores.link2 import curvature_curve, example_summaries, fit_curve, loss_curve, seed_means, trend

EPSILONS = np.array([1.0, 5, 10, 15, 20, 30, 40, 60, 80, 100])


@given(a=st.floats(0.1, 2), b=st.floats(0.5, 3), c=st.floats(0.02, 0.5))
@settings(max_examples=25, deadline=None)
def test_loss_fit_finds_the_parameters_it_was_made_from(a: float, b: float, c: float) -> None:
    values = np.repeat(loss_curve(EPSILONS, a, b, c)[:, None], 3, axis=1)
    fit = fit_curve(loss_curve, EPSILONS, values, n_resamples=2)
    found = [estimate.value for estimate in fit.parameters.values()]
    np.testing.assert_allclose(found, [a, b, c], rtol=2e-3)
    assert fit.r_squared == pytest.approx(1, abs=1e-9)
    np.testing.assert_allclose(fit(EPSILONS), values[:, 0], rtol=1e-4)


def test_curvature_fit_is_no_worse_than_scipy_from_the_true_parameters() -> None:
    rng = np.random.default_rng(0)
    truth = (3.0, -2.0, 0.05, 0.4)
    means = curvature_curve(EPSILONS, *truth) + 0.02 * rng.normal(size=len(EPSILONS))
    fit = fit_curve(curvature_curve, EPSILONS, means[:, None], n_resamples=2)
    theirs, _ = optimize.curve_fit(curvature_curve, EPSILONS, means, p0=truth, maxfev=20_000)
    mine = np.sum((means - fit(EPSILONS)) ** 2)
    assert mine <= np.sum((means - curvature_curve(EPSILONS, *theirs)) ** 2) * (1 + 1e-6)
    assert fit.r_squared == pytest.approx(1 - mine / np.sum((means - means.mean()) ** 2))


def test_intervals_of_the_fit_cover_the_parameters() -> None:
    covered = []
    for trial in range(30):
        rng = np.random.default_rng(trial)
        values = loss_curve(EPSILONS, 0.4, 1.6, 0.1)[:, None] + 0.05 * rng.normal(size=(len(EPSILONS), 10))
        estimate = fit_curve(loss_curve, EPSILONS, values, n_resamples=40, seed=trial).parameters["a"]
        covered.append(estimate.low <= 0.4 <= estimate.high)
    assert np.mean(covered) > 0.8


def test_too_few_epsilons_are_refused() -> None:
    with pytest.raises(ValueError, match="3 parameters cannot be fitted to 2"):
        fit_curve(loss_curve, EPSILONS[:2], np.ones((2, 3)))


def test_means_divide_by_the_number_of_seeds() -> None:
    """The published notebook divides the sum over ten seeds by the number of epsilons, 21."""
    values = np.array([[1.0, 2.0, 6.0], [4.0, np.nan, 2.0], [5.0, np.nan, np.nan]])
    means = seed_means(values)
    assert [m.value for m in means] == [3.0, 3.0, 5.0]
    low, high = stats.t.interval(0.95, 2, loc=3.0, scale=stats.sem([1.0, 2.0, 6.0]))
    assert (means[0].low, means[0].high) == pytest.approx((low, high))
    assert np.isnan(means[2].low) and np.isnan(means[2].high)


def test_summaries_of_heavy_tails() -> None:
    scores = np.concatenate([np.ones(95), np.full(5, 1000.0)])
    summary = example_summaries(scores)
    assert summary["mean"] == pytest.approx(50.95) and summary["median"] == summary["trimmed mean"] == 1


def test_trend_finds_a_rise_and_no_rise() -> None:
    rng = np.random.default_rng(3)
    rising = trend(EPSILONS, EPSILONS[:, None] + rng.normal(size=(10, 6)), n_resamples=199)
    assert rising.spearman.low > 0.9 > rising.permutation.null_high and rising.permutation.p_value == 1 / 200
    flat = rng.normal(size=(10, 6))
    flat[0, 0] = np.nan
    result = trend(EPSILONS, flat, n_resamples=199)
    x, y = np.repeat(EPSILONS, 6)[1:], flat.ravel()[1:]
    assert result.spearman.value == pytest.approx(stats.spearmanr(x, y).statistic)
    assert result.permutation.null_low < result.spearman.value < result.permutation.null_high
