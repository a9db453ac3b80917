"""Link 2's fits and trends against curves whose parameters are known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from libscores.link2 import (
    curvature_by_group,
    curvature_curve,
    example_summaries,
    fit_curve,
    loss_curve,
    seed_means,
    trend,
)
from libscores.verdicts import falls, fits, rises

EPSILONS = np.array([1.0, 5, 10, 15, 20, 30, 40, 60, 80, 100])


@given(a=st.floats(0.1, 2), b=st.floats(0.5, 3), c=st.floats(0.02, 0.5))
@settings(max_examples=25, deadline=None)
def test_loss_fit_finds_the_parameters_it_was_made_from(a: float, b: float, c: float) -> None:
    values = np.repeat(loss_curve(EPSILONS, a, b, c)[:, None], 3, axis=1)
    fit = fit_curve(loss_curve, EPSILONS, values)
    found = [estimate.value for estimate in fit.parameters.values()]
    np.testing.assert_allclose(found, [a, b, c], rtol=2e-3)
    assert fit.r_squared == pytest.approx(1, abs=1e-9)
    np.testing.assert_allclose(fit(EPSILONS), values[:, 0], rtol=1e-4)


def test_curvature_fit_is_no_worse_than_scipy_from_the_true_parameters() -> None:
    rng = np.random.default_rng(0)
    truth = (3.0, -2.0, 0.05, 0.4)
    means = curvature_curve(EPSILONS, *truth) + 0.02 * rng.normal(size=len(EPSILONS))
    fit = fit_curve(curvature_curve, EPSILONS, means[:, None])
    theirs, _ = optimize.curve_fit(curvature_curve, EPSILONS, means, p0=truth, maxfev=20_000)
    mine = np.sum((means - fit(EPSILONS)) ** 2)
    assert mine <= np.sum((means - curvature_curve(EPSILONS, *theirs)) ** 2) * (1 + 1e-6)
    assert fit.r_squared == pytest.approx(1 - mine / np.sum((means - means.mean()) ** 2))


def clustered(seed: int, truth: np.ndarray, n_seeds: int, noise: float) -> np.ndarray:
    """Values at each epsilon and seed whose noise a seed shares over epsilon."""
    rng = np.random.default_rng(seed)
    return truth[:, None] * np.exp(noise * (rng.normal(size=n_seeds) + 0.3 * rng.normal(size=(len(truth), n_seeds))))


def test_intervals_cover_what_they_name() -> None:
    truth = loss_curve(EPSILONS, 0.4, 1.6, 0.1)
    exact = np.polyfit(np.log(EPSILONS), np.log(truth), 1)[0]
    covered: dict[str, list[bool]] = {"a": [], "c": [], "slope": [], "mean": []}
    for trial in range(100):
        values = clustered(trial, truth, 8, 0.05)
        fit, moves = fit_curve(loss_curve, EPSILONS, values), trend(EPSILONS, values, n_permutations=1)
        named = {"a": (fit.parameters["a"], 0.4), "c": (fit.parameters["c"], 0.1), "slope": (moves.slope, exact)}
        named["mean"] = (seed_means(values)[0], truth[0] * np.exp(0.05**2 * 1.09 / 2))
        for name, (estimate, target) in named.items():
            covered[name].append(estimate.low <= target <= estimate.high)
    shares = {name: np.mean(one) for name, one in covered.items()}
    assert min(shares.values()) >= 0.9, shares


def test_lack_of_fit_is_found_and_not_invented() -> None:
    truth = loss_curve(EPSILONS, 0.4, 1.6, 0.1)
    p_values = [fit_curve(loss_curve, EPSILONS, clustered(k, truth, 12, 0.02)).p_lack_of_fit for k in range(60)]
    assert np.mean(np.array(p_values) < 0.05) < 0.12 and np.median(p_values) > 0.3
    bent = truth * (1 + 0.15 * np.sin(np.arange(len(truth))))
    fit = fit_curve(loss_curve, EPSILONS, clustered(0, bent, 12, 0.02))
    assert fit.p_lack_of_fit < 1e-3 and fit.r_squared > 0.9
    assert fits(fit.p_lack_of_fit, fit.largest_misfit, fit.n_values, len(fit.parameters)) == "no"
    good = fit_curve(loss_curve, EPSILONS, clustered(1, truth, 12, 0.01))
    assert fits(good.p_lack_of_fit, good.largest_misfit, good.n_values, len(good.parameters)) == "yes"
    few = fit_curve(loss_curve, EPSILONS, clustered(1, truth, 4, 0.01))  # fewer seeds than directions to test
    assert np.isnan(few.p_lack_of_fit)
    assert fits(few.p_lack_of_fit, few.largest_misfit, few.n_values, len(few.parameters)) == "cannot say"


def test_what_a_curve_may_miss_is_covered() -> None:
    """The share of the variance of the true means that the best curve misses is below the bound in 95 % of studies."""
    bent = loss_curve(EPSILONS, 0.4, 1.6, 0.1) * (1 + 0.03 * np.cos(np.arange(len(EPSILONS))))
    missed = 1 - fit_curve(loss_curve, EPSILONS, bent[:, None]).r_squared
    bounds = [fit_curve(loss_curve, EPSILONS, clustered(k, bent, 12, 0.02)).largest_misfit for k in range(40)]
    assert np.mean(np.array(bounds) >= missed) >= 0.9


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
    rising = trend(EPSILONS, EPSILONS[:, None] ** 0.5 * np.exp(0.1 * rng.normal(size=(10, 6))), n_permutations=199)
    assert rising.slope.low < 0.5 < rising.slope.high and rises(rising.slope) == "yes"
    assert rising.spearman.value > 0.9 > rising.spearman.null_high and rising.spearman.p_value == 1 / 200
    flat = np.exp(rng.normal(size=(10, 6)))
    flat[0, 0] = np.nan
    result = trend(EPSILONS, flat, n_permutations=199)
    x, y = np.repeat(EPSILONS, 6)[1:], flat.ravel()[1:]
    assert result.spearman.value == pytest.approx(stats.spearmanr(x, y).statistic)
    assert result.spearman.null_low < result.spearman.value < result.spearman.null_high
    assert rises(result.slope) == falls(result.slope) == "cannot say"
    slopes = [stats.linregress(np.log(EPSILONS[k == 0 :]), np.log(flat[k == 0 :, k])).slope for k in range(6)]
    assert result.slope.value == pytest.approx(np.mean(slopes))


def test_seeds_and_not_models_are_what_is_independent() -> None:
    """Ranks that every seed repeats leave an interval of no width around a correlation; slopes differ by seed."""
    seeds = np.random.default_rng(0).normal(size=6)
    values = EPSILONS[:, None] ** (0.2 + 0.1 * seeds) * np.exp(3 * seeds)
    moves = trend(EPSILONS, values, n_permutations=9)
    assert moves.slope.high - moves.slope.low > 0.05
    assert np.isnan(trend(EPSILONS, values[:, :1], n_permutations=9).slope.low)
    assert np.isnan(trend(EPSILONS, values - 10, n_permutations=9).slope.value)


def test_members_and_others_apart() -> None:
    rng, epsilons = np.random.default_rng(1), (1.0, 4.0, 16.0)
    top = np.arange(40) < 10
    masks = {seed: rng.random(40) < 0.6 for seed in (3, 5, 8)}
    base = np.exp(rng.normal(size=40))
    power = {seed: np.where(masks[seed], np.where(top, 0.5, -0.3), 0.8) for seed in masks}
    models = [(e, seed, masks[seed], (base * e ** power[seed]).astype(np.float32)) for e in epsilons for seed in masks]
    found = curvature_by_group(models, top)
    assert found.epsilons.tolist() == list(epsilons) and found.seeds.tolist() == [3, 5, 8]
    groups = {"all": np.ones(40, bool), "members": masks[5], "held out": ~masks[5],
              "members, most memorized": masks[5] & top, "members, the rest": masks[5] & ~top}  # fmt: skip
    for group, mask in groups.items():
        scores = models[4][3][mask]  # epsilon 4, seed 5
        for statistic, value in example_summaries(scores).items():
            assert found.tables[group][statistic][1, 1] == pytest.approx(value)
    chosen = {
        "members": lambda mask: mask,
        "held out": lambda mask: ~mask,
        "members, the rest": lambda mask: mask & ~top,
    }
    signs = {group: [np.mean(power[s][of(masks[s])] > 0) for s in masks] for group, of in chosen.items()}
    for group, shares in signs.items():
        assert found.rising[group].value == pytest.approx(np.mean(shares))
    assert trend(found.epsilons, found.tables["held out"]["mean"]).slope.value == pytest.approx(0.8, abs=1e-5)
    assert trend(found.epsilons, found.tables["members, the rest"]["median"]).slope.value == pytest.approx(
        -0.3, abs=1e-5
    )
    without = curvature_by_group(models[:-1])
    assert set(without.tables) == {"all", "members", "held out"} and np.isnan(without.tables["all"]["mean"][2, 2])
