"""Link 1's statistics against SciPy, plain loops and simulated ensembles whose answer is known."""

from __future__ import annotations

import tracemalloc
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from libscores.link1 import binned_curve, link1, subpopulation_fit
from libscores.memorization import memorization
from libscores.statistics import (
    bootstrap_interval,
    bootstrap_weights,
    cosine,
    pearson,
    permutation_test,
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
    result = link1(lambda: runs, 12, 50, n_resamples=10, block=4, n_permutations=19)
    masks, values, curvatures = (np.stack(part) for part in zip(*runs, strict=True))
    scores = memorization(zip(masks, values, strict=True), 50)
    np.testing.assert_allclose(result.memorization, scores.score)
    defined = np.isfinite(scores.score)
    assert result.n_undefined == (~defined).sum() and np.isnan(result.curvature[~defined]).all()
    for i in np.flatnonzero(defined):
        mine = curvatures[masks[:, i], i]
        assert result.curvature[i] == pytest.approx(mine.mean())
        assert result.curvature_max[i] == pytest.approx(mine.max())
        assert result.curvature_se[i] == pytest.approx(stats.sem(mine))
    assert result.similarity["Spearman"].value == pytest.approx(
        stats.spearmanr(scores.score[defined], result.curvature[defined]).statistic
    )
    line = stats.linregress(scores.score[defined], result.curvature[defined])
    assert (result.slope.value, result.intercept.value) == pytest.approx((line.slope, line.intercept))
    even, odd = (
        memorization(zip(masks[::2], values[::2], strict=True), 50).score,
        np.ma.masked_array(curvatures[1::2], ~masks[1::2]),
    )
    both = np.isfinite(even) & ~odd.mean(0).mask
    assert result.disjoint_halves.value == pytest.approx(stats.spearmanr(even[both], odd.mean(0).data[both]).statistic)


def test_bootstrap_statistics_equal_a_plain_resampling_of_runs() -> None:
    runs, seed = simulated(2, 8, 40, 1.0), 3
    result = link1(lambda: runs, 8, 40, n_resamples=6, block=4, n_permutations=9, seed=seed)
    resampled = []
    for counts in bootstrap_weights(8, 6, seed).astype(int):
        drawn = [runs[t] for t in np.repeat(np.arange(8), counts)]
        masks, values, curvatures = (np.stack(part) for part in zip(*drawn, strict=True))
        mem = memorization(zip(masks, values, strict=True), 40).score
        curv = np.array([curvatures[masks[:, i], i].mean() if masks[:, i].any() else np.nan for i in range(40)])
        both = np.isfinite(mem) & np.isfinite(curv)
        resampled.append(stats.spearmanr(mem[both], curv[both]).statistic)
    want = bootstrap_interval(result.similarity["Spearman"].value, np.array(resampled))
    got = result.similarity["Spearman"]
    assert (got.value, got.low, got.high) == pytest.approx((want.value, want.low, want.high), abs=1e-12)


def test_block_size_does_not_change_the_result() -> None:
    runs = simulated(4, 6, 30, 1.0)
    results = [link1(lambda: runs, 6, 30, n_resamples=7, block=block, n_permutations=9) for block in (1, 3, 7)]
    assert results[0].similarity == results[1].similarity == results[2].similarity


def test_no_link_is_found_where_there_is_none() -> None:
    result = link1(lambda: simulated(7, 40, 400, 0.0), 40, 400, n_resamples=50, n_permutations=199)
    spearman_estimate = result.similarity["Spearman"]
    assert abs(spearman_estimate.value) < 0.15
    assert result.permutation.null_low <= spearman_estimate.value <= result.permutation.null_high
    linked = link1(lambda: simulated(7, 40, 400, 1.0), 40, 400, n_resamples=50, n_permutations=199)
    assert linked.similarity["Spearman"].low > 0.5 and linked.permutation.p_value == 1 / 200


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
        link1(partial(read, n_runs), n_runs, n, n_resamples=4, block=2, n_permutations=1)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    one_more_run = 17 * n
    assert peaks[1] - peaks[0] < 8 * one_more_run < 56 * one_more_run
