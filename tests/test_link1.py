"""Link 1's statistics against SciPy, plain loops and simulated ensembles whose answer is known."""

from __future__ import annotations

import tracemalloc
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from libscores.correlation import partial_spearman
from libscores.link1 import binned_curve, link1, subpopulation_fit, tail_overlap, within_classes
from libscores.memorization import memorization
from libscores.statistics import (
    auroc,
    bootstrap_interval,
    bootstrap_weights,
    cosine,
    jackknife_interval,
    pearson,
    permutation_test,
    permutation_tests,
    spearman,
)


@given(seed=st.integers(0, 10**6), n=st.integers(3, 40), levels=st.integers(2, 30))
@settings(max_examples=50, deadline=None)
def test_similarities_equal_scipy(seed: int, n: int, levels: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, levels, n).astype(float), rng.normal(size=n)
    if np.ptp(a) == 0:
        assert np.isnan(pearson(a, b)) and np.isnan(spearman(a, b))
        return
    assert spearman(a, b) == pytest.approx(stats.spearmanr(a, b).statistic, abs=1e-12)
    assert pearson(a, b) == pytest.approx(stats.pearsonr(a, b).statistic, abs=1e-12)
    assert cosine(a, b) == pytest.approx(sum(a * b) / np.sqrt(sum(a * a) * sum(b * b)), abs=1e-12)


def test_permutation_control_accepts_no_link_and_rejects_a_strong_one() -> None:
    rng = np.random.default_rng(0)
    a = rng.normal(size=300)
    strong = permutation_test(a, a + 0.1 * rng.normal(size=300), 199, 1)
    assert strong.p_value == 1 / 200 and strong.value > strong.null_high
    p_values = [permutation_test(a, rng.normal(size=300), 99, seed).p_value for seed in range(60)]
    assert stats.kstest(p_values, "uniform").pvalue > 1e-3


def test_random_pairs_of_a_cosine_are_not_at_zero() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.gamma(0.5, size=400), rng.gamma(0.5, size=400)
    found = permutation_tests(a, b, 199, 1)
    plain = [[measure(a, b[rng.permutation(400)]) for _ in range(400)] for measure in (spearman, pearson, cosine)]
    for (name, test), expected in zip(found.items(), plain, strict=True):
        assert test.null == pytest.approx(np.mean(expected), abs=0.01)
        np.testing.assert_allclose([test.null_low, test.null_high], np.quantile(expected, [0.025, 0.975]), atol=0.03)
        assert test.p_value > 0.01 and (test.null > 0.2) == (name == "cosine")


@given(seed=st.integers(0, 10**6), n=st.integers(2, 40))
@settings(max_examples=30, deadline=None)
def test_auroc_counts_pairs(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    marked, score = rng.random(n) < 0.4, rng.integers(0, 6, n)
    pairs = [(a > b) + (a == b) / 2 for a in score[marked] for b in score[~marked]]
    assert auroc(marked, score) == pytest.approx(np.mean(pairs) if pairs else np.nan, nan_ok=True)


def test_bootstrap_interval_covers_a_mean() -> None:
    rng = np.random.default_rng(5)
    covered = []
    for trial in range(300):
        sample = rng.normal(size=40)
        resampled = bootstrap_weights(40, 200, trial) @ sample / 40
        estimate = bootstrap_interval(sample.mean(), resampled)
        covered.append(estimate.low < 0 < estimate.high)
    assert 0.90 < np.mean(covered) < 0.99


@given(seed=st.integers(0, 10**6), n=st.integers(1, 60), width=st.sampled_from([0.02, 0.1, 0.3, 1.0]))
@settings(max_examples=50, deadline=None)
def test_bins_equal_a_loop(seed: int, n: int, width: float) -> None:
    rng = np.random.default_rng(seed)
    mem, curv = np.round(rng.uniform(-0.2, 1.05, n), 2), rng.normal(size=n)
    mem[0] = 1.0
    curve = binned_curve(mem, curv, width)
    edges = [round(k * width, 6) for k in range(int(np.ceil(1 / width - 1e-9)))]
    row = 0
    for k, edge in enumerate(edges):
        last = k == len(edges) - 1
        inside = (mem >= edge - 1e-9) & (mem <= 1) & ((mem < edge + width - 1e-9) | last)
        if not inside.any():
            continue
        assert curve.count[row] == inside.sum()
        assert curve.memorization[row] == pytest.approx(mem[inside].mean())
        assert curve.curvature[row] == pytest.approx(curv[inside].mean())
        if inside.sum() > 1:
            assert curve.standard_error[row] == pytest.approx(stats.sem(curv[inside]), abs=1e-9)
        else:
            assert np.isnan(curve.standard_error[row])
        row += 1
    assert row == len(curve.count)
    assert curve.n_outside == n - curve.count.sum() == np.count_nonzero((mem < 0) | (mem > 1))


@pytest.mark.parametrize("width", [0, -0.1, 1.5])
def test_bin_width_out_of_range_is_refused(width: float) -> None:
    with pytest.raises(ValueError, match="width"):
        binned_curve(np.ones(3), np.ones(3), width)


def test_subpopulation_fit_finds_the_coefficients_it_was_made_from() -> None:
    rng = np.random.default_rng(1)
    mem = rng.random(5000) ** 3
    curve = binned_curve(mem, np.zeros(5000))
    truth = 0.3 * curve.memorization * np.sqrt(curve.count) + 0.02 * curve.count
    fit = subpopulation_fit(binned_curve(mem, np.repeat(truth, curve.count)[np.argsort(np.argsort(mem))]))
    assert (fit.a, fit.b, fit.r_squared) == pytest.approx((0.3, 0.02, 1.0), rel=1e-6)
    assert subpopulation_fit(binned_curve(mem, -np.ones(5000))).a == 0


def simulated(seed: int, n_runs: int, n: int, link: float) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Runs of an ensemble where curvature depends on memorization with strength `link`."""
    rng = np.random.default_rng(seed)
    truth = rng.random(n)
    runs = []
    for _ in range(n_runs):
        inside = rng.random(n) < 0.7
        value = (rng.random(n) < np.where(inside, 1.0, 1 - truth)).astype(float)
        runs.append((inside, value, link * truth + rng.gamma(2, 0.5, n)))
    return runs


def test_scores_equal_plain_means_over_the_models_that_hold_the_example() -> None:
    runs = simulated(0, 12, 50, 1.0)
    result = link1(lambda: runs, 12, 50, n_permutations=19)
    masks, values, curvatures = (np.stack(part) for part in zip(*runs, strict=True))
    scores = memorization(zip(masks, values, strict=True), 50)
    np.testing.assert_allclose(result.memorization, scores.score)
    defined = np.isfinite(scores.score)
    assert result.n_undefined == (~defined).sum() and np.isnan(result.links["curvature"].score[~defined]).all()
    for i in np.flatnonzero(defined):
        mine = curvatures[masks[:, i], i]
        assert result.links["curvature"].score[i] == pytest.approx(mine.mean())
        assert result.curvature_max[i] == pytest.approx(mine.max())
        assert result.curvature_se[i] == pytest.approx(stats.sem(mine))
    assert result.links["curvature"].similarity["Spearman"].value == pytest.approx(
        stats.spearmanr(scores.score[defined], result.links["curvature"].score[defined]).statistic
    )
    line = stats.linregress(scores.score[defined], result.links["curvature"].score[defined])
    assert (result.slope.value, result.intercept.value) == pytest.approx((line.slope, line.intercept))
    even, odd = (
        [
            memorization(zip(masks[half::2], values[half::2], strict=True), 50).score,
            np.ma.masked_array(curvatures[half::2], ~masks[half::2]).mean(0),
        ]
        for half in (0, 1)
    )
    both = np.isfinite(even[0]) & np.isfinite(odd[0]) & ~even[1].mask & ~odd[1].mask
    ways = [stats.spearmanr(one[0][both], other[1].data[both]).statistic for one, other in ((even, odd), (odd, even))]
    assert result.links["curvature"].disjoint_halves.value == pytest.approx(np.mean(ways))
    within = [stats.spearmanr(even[k][both], odd[k][both]).statistic for k in (0, 1)]
    assert result.links["curvature"].corrected.value == pytest.approx(np.mean(ways) / np.sqrt(np.prod(within)))
    assert result.reliability.value == pytest.approx(2 * within[0] / (1 + within[0]))


def test_loss_beside_curvature_equals_plain_means() -> None:
    rng, plain = np.random.default_rng(9), simulated(0, 12, 60, 1.0)
    losses = rng.gamma(2, 1, (12, 60))
    runs = [(*run, loss) for run, loss in zip(plain, losses, strict=True)]
    labels = np.arange(60) % 2
    result = link1(lambda: runs, 12, 60, labels=labels, n_permutations=9)
    masks, values, curvatures = (np.stack(part) for part in zip(*plain, strict=True))
    mem = memorization(zip(masks, values, strict=True), 60).score
    inside = {
        name: np.nanmean(np.where(masks, x, np.nan), 0) for name, x in (("curvature", curvatures), ("loss", losses))
    }
    outside = np.array([losses[~masks[:, i], i].mean() if (~masks[:, i]).any() else np.nan for i in range(60)])
    ok = np.isfinite(mem)
    loss, curvature = (result.links[name] for name in ("loss", "curvature"))
    np.testing.assert_allclose(loss.score, np.where(ok, inside["loss"], np.nan))
    x, y = inside["curvature"][ok], inside["loss"][ok]
    assert loss.similarity["Spearman"].value == pytest.approx(stats.spearmanr(mem[ok], y).statistic)
    assert loss.others.value == pytest.approx(stats.spearmanr(mem[ok], outside[ok]).statistic)
    assert curvature.partial.value == pytest.approx(partial_spearman(mem[ok], x, y))
    assert loss.partial.value == pytest.approx(partial_spearman(mem[ok], y, x))
    assert curvature.auroc.value == pytest.approx(auroc(mem[ok] > 0.25, x))
    assert result.curvature_and_loss.value == pytest.approx(stats.spearmanr(x, y).statistic)
    first = curvature.similarity["Spearman"].value - loss.similarity["Spearman"].value
    assert result.difference.value == pytest.approx(first)
    zero = ok & (labels == 0)
    assert curvature.by_class[0] == pytest.approx(stats.spearmanr(mem[zero], inside["curvature"][zero]).statistic)
    assert (
        link1(lambda: plain, 12, 60, n_permutations=9).links["curvature"].similarity
        == result.links["curvature"].similarity
    )


def test_the_curve_against_the_number_of_runs_is_of_disjoint_sets() -> None:
    runs = simulated(3, 12, 40, 1.0)
    result = link1(lambda: runs, 12, 40, n_groups=6, n_permutations=9)
    sizes = [size for size, _ in result.links["curvature"].by_runs]
    assert sizes == [2, 4, 6, 12]
    sets = [
        link1(lambda part=runs[k : k + 4]: part, 4, 40, n_permutations=1)
        .links["curvature"]
        .similarity["Spearman"]
        .value
        for k in (0, 4, 8)
    ]
    found = dict(result.links["curvature"].by_runs)
    interval = stats.ttest_1samp(sets, 0).confidence_interval(0.95)
    assert (found[4].value, found[4].low) == pytest.approx((np.mean(sets), max(-1, interval.low)))
    assert np.isnan(found[6].low) and found[12] == result.links["curvature"].similarity["Spearman"]


def test_membership_of_other_runs_finds_nothing() -> None:
    runs = simulated(7, 40, 300, 1.0)
    result = link1(lambda: runs, 40, 300, n_permutations=9)
    shifted = [(before[0], run[1]) for before, run in zip(runs, runs[1:], strict=False)]
    mem = memorization(shifted, 300).score
    assert result.shuffled.value == pytest.approx(stats.spearmanr(mem, result.links["curvature"].score).statistic)
    assert result.shuffled.low < 0 < result.shuffled.high < 0.4 < result.links["curvature"].similarity["Spearman"].low


def test_tails_and_classes() -> None:
    mem = np.arange(300.0)
    score = np.concatenate([mem[:280], mem[280:] - 285])  # of the 20 highest, 15 stay among the highest
    assert tail_overlap(mem, score)[20] == pytest.approx(0.0 if score[280] < 0 else 0.75)
    assert tail_overlap(mem, mem) == {20: 1, 100: 1, 200: 1} and tail_overlap(mem[:100], -mem[:100]) == {20: 0}
    labels = (mem >= 295).astype(int)
    assert within_classes(mem, -mem, labels) == {0: -1}


def test_no_link_is_found_where_there_is_none() -> None:
    result = link1(lambda: simulated(7, 40, 400, 0.0), 40, 400, n_permutations=199)
    spearman_estimate = result.links["curvature"].similarity["Spearman"]
    assert abs(spearman_estimate.value) < 0.15
    assert (
        result.links["curvature"].random_pairs["Spearman"].null_low
        <= spearman_estimate.value
        <= result.links["curvature"].random_pairs["Spearman"].null_high
    )
    linked = link1(lambda: simulated(7, 40, 400, 1.0), 40, 400, n_permutations=199)
    assert (
        linked.links["curvature"].similarity["Spearman"].low > 0.5
        and linked.links["curvature"].random_pairs["Spearman"].p_value == 1 / 200
    )


def linked_ensemble(seed: int, truth: np.ndarray, own: np.ndarray, n_runs: int, correctness: bool) -> list[tuple]:
    """Runs whose curvature and loss rise with a fixed memorization, each with a scale and noise of its own."""
    rng, shape = np.random.default_rng(seed), (n_runs, len(truth))
    masks = rng.random(shape) < 0.7
    prob = np.clip(np.where(masks, 0.98, 1 - truth) + 0.05 * rng.normal(size=shape), 0.001, 1)
    values = (rng.random(shape) < prob).astype(float) if correctness else prob
    scale = rng.gamma(8, 1 / 8, (n_runs, 1))
    curvatures = scale * np.exp(2 * truth + 0.5 * own + 0.8 * rng.normal(size=shape) + 0.5 * (prob < 0.9))
    return list(zip(masks, values, curvatures, curvatures * np.exp(0.3 * rng.normal(size=shape)), strict=True))


@pytest.mark.parametrize("correctness", [False, True])
def test_intervals_cover_what_they_name(correctness: bool) -> None:
    """The expectation over ensembles of as many runs, and for the corrected value the limit of many runs."""
    rng, n, n_runs, trials = np.random.default_rng(0), 80, 40, 100
    truth, own = np.where(rng.random(n) < 0.3, rng.beta(0.5, 1, n), 0.1 * rng.random(n)), rng.normal(size=n)
    results = []
    for seed in range(trials):
        runs = linked_ensemble(seed, truth, own, n_runs, correctness)
        results.append(link1(lambda runs=runs: runs, n_runs, n, n_groups=10, n_permutations=1))
    limit = linked_ensemble(10**6, truth, own, 4000, correctness)
    many = link1(lambda: limit, 4000, n, n_groups=2, n_permutations=1)
    named = {
        f"{name} {kind}": [getattr(r.links[name], kind) for r in results]
        for name in ("curvature", "loss")
        for kind in ("others", "partial", "auroc", "disjoint_halves", "corrected")
    }
    named |= {
        kind: [r.links["curvature"].similarity[kind] for r in results] for kind in ("Spearman", "Pearson", "cosine")
    }
    named |= {kind: [getattr(r, kind) for r in results] for kind in ("difference", "reliability", "slope", "shuffled")}
    shares = {}
    for name, estimates in named.items():
        target = np.mean([estimate.value for estimate in estimates])
        if name.endswith("corrected"):
            target = many.links[name.split()[0]].similarity["Spearman"].value
        shares[name] = np.mean([estimate.low <= target <= estimate.high for estimate in estimates])
    assert min(shares.values()) >= 0.9, shares


def test_too_little_to_work_on_is_refused() -> None:
    with pytest.raises(ValueError, match="two runs"):
        link1(lambda: simulated(0, 1, 10, 1.0), 1, 10)
    always = [(np.ones(10, bool), np.ones(10), np.ones(10))] * 3
    with pytest.raises(ValueError, match="only 0 examples"):
        link1(lambda: always, 3, 10)


def test_memory_does_not_grow_with_the_number_of_runs() -> None:
    n = 20_000

    def read(n_runs: int):
        rng = np.random.default_rng(0)
        for _ in range(n_runs):
            yield rng.random(n) < 0.7, rng.random(n), rng.random(n)

    peaks = []
    for n_runs in (8, 64):
        tracemalloc.start()
        link1(partial(read, n_runs), n_runs, n, n_groups=4, n_permutations=1)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    one_more_run = 17 * n
    assert peaks[1] - peaks[0] < 8 * one_more_run < 56 * one_more_run


def given_runs(seed: int, truth: np.ndarray, n_runs: int) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Runs whose curvature depends on a fixed memorization; every model has a scale of its own."""
    rng = np.random.default_rng(seed)
    return [
        (rng.random(len(truth)) < 0.7, truth, rng.gamma(4, 0.25) * truth + rng.gamma(2, 1, len(truth)))
        for _ in range(n_runs)
    ]


def test_given_memorization_equals_plain_left_out_groups() -> None:
    mem = np.random.default_rng(0).random(60)
    runs = given_runs(1, mem, 11)  # leaving out the third group leaves an example that no model holds
    mem[7] = np.nan
    result = link1(lambda: iter(runs), 11, len(mem), memorization=mem, n_groups=4, n_permutations=99)
    masks, _, curvatures = (np.stack(part) for part in zip(*runs, strict=True))
    held = np.where(masks, curvatures, np.nan)
    ok = np.arange(60) != 7
    np.testing.assert_allclose(result.links["curvature"].score[ok], np.nanmean(held, 0)[ok])
    np.testing.assert_allclose(result.curvature_max[ok], np.nanmax(held, 0)[ok])
    assert np.isnan(result.links["curvature"].score[7]) and result.n_undefined == 1

    def plain(rows: np.ndarray) -> list[float]:
        both = ok & np.isfinite(rows).any(0)
        x, y = mem[both], np.nanmean(rows[:, both], 0)
        fit = stats.linregress(x, y)
        return [stats.spearmanr(x, y).statistic, stats.pearsonr(x, y).statistic, fit.slope, fit.intercept]

    groups = [range(3), range(3, 6), range(6, 9), range(9, 11)]
    assert (~np.isfinite(np.delete(held, groups[2], axis=0))).all(0).any()
    without = np.array([plain(np.delete(held, group, axis=0)) for group in groups])
    half = stats.t.ppf(0.975, 3) * np.sqrt(3 / 4 * ((without - without.mean(0)) ** 2).sum(0))
    got = [
        result.links["curvature"].similarity["Spearman"],
        result.links["curvature"].similarity["Pearson"],
        result.slope,
        result.intercept,
    ]
    np.testing.assert_allclose([e.value for e in got], plain(held))
    np.testing.assert_allclose([e.high - e.value for e in got], half)
    np.testing.assert_allclose([e.value - e.low for e in got], half)
    want = stats.spearmanr(mem[ok], np.nanmax(held, 0)[ok]).statistic
    assert result.similarity_max["Spearman"].value == pytest.approx(want)
    assert np.isnan(result.similarity_max["Spearman"].low) and np.isnan(result.links["curvature"].disjoint_halves.value)


def test_given_memorization_interval_covers_the_expected_correlation() -> None:
    mem = np.random.default_rng(0).random(200)
    results = [
        link1(partial(given_runs, seed, mem, 30), 30, len(mem), memorization=mem, n_groups=10, n_permutations=1)
        for seed in range(100)
    ]
    for name in ("Spearman", "Pearson", "cosine"):
        estimates = [result.links["curvature"].similarity[name] for result in results]
        expected = np.mean([estimate.value for estimate in estimates])
        assert 0.89 < np.mean([estimate.low < expected < estimate.high for estimate in estimates]) < 0.995, name


def test_given_memorization_refuses_too_little() -> None:
    mem = np.full(10, 0.5)
    with pytest.raises(ValueError, match="two runs and two groups, found 1 and 20"):
        link1(lambda: given_runs(0, mem, 1), 1, 10, memorization=mem)
    with pytest.raises(ValueError, match="read 3 runs, expected 4"):
        link1(lambda: given_runs(0, mem, 3), 4, 10, memorization=mem)
    with pytest.raises(ValueError, match="only 0 examples have a memorization score"):
        link1(lambda: given_runs(0, mem, 3), 3, 10, memorization=mem * np.nan)


def test_given_memorization_streams() -> None:
    n = 20_000
    mem = np.random.default_rng(0).random(n)

    def read(n_runs: int):
        rng = np.random.default_rng(0)
        for _ in range(n_runs):
            yield rng.random(n) < 0.7, mem, rng.random(n)

    peaks = []
    for n_runs in (8, 64):
        tracemalloc.start()
        link1(partial(read, n_runs), n_runs, n, memorization=mem, n_groups=8, n_permutations=1)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    vector = 8 * n
    assert peaks[1] - peaks[0] < vector and peaks[1] < 70 * vector


@given(seed=st.integers(0, 10**6), groups=st.integers(2, 30))
@settings(max_examples=30, deadline=None)
def test_jackknife_of_a_mean_is_students_interval(seed: int, groups: int) -> None:
    sample = np.random.default_rng(seed).normal(size=groups)
    left_out = np.array([np.delete(sample, g).mean() for g in range(groups)])
    got = jackknife_interval(sample.mean(), left_out)
    want = stats.ttest_1samp(sample, 0).confidence_interval(0.95)
    assert (got.low, got.high) == pytest.approx((want.low, want.high))
