"""Link 3's subsets, bounds and conditional means against plain computations."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from libscores.link3 import draw_subset, expected_size, private_memorization, pure_bound, top_k, total_variation_bound


@given(seed=st.integers(0, 10**6), n=st.integers(10, 80), k=st.integers(2, 9), ratio=st.floats(0.1, 0.9))
@settings(max_examples=40, deadline=None)
def test_subsets_of_a_pair_share_the_top_and_hold_a_share_of_the_rest(seed: int, n: int, k: int, ratio: float) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=n)
    scores[rng.integers(n)] = np.nan
    top = top_k(scores, k)
    assert np.nanmin(scores[top]) >= np.nanmax(np.delete(scores, top), initial=-np.inf)
    one, other = (draw_subset(top, n, ratio, 2 * seed + odd) for odd in (0, 1))
    for subset in (one, other):
        assert len(np.unique(subset)) == len(subset) and np.all(np.diff(subset) > 0)
        assert (~np.isin(subset, top)).sum() == round(ratio * (n - k))
    halves = [set(subset) & set(top) for subset in (one, other)]
    assert halves[0] | halves[1] == set(top) and not halves[0] & halves[1]
    expected = (len(one) + len(other)) / 2
    assert expected - 1 <= expected_size(k, n, ratio) <= expected


def test_every_top_example_is_in_half_of_the_subsets_whatever_the_others() -> None:
    top = np.arange(20)
    drawn = np.array([np.isin(np.arange(60), draw_subset(top, 60, 0.7, 2 * seed)) for seed in range(600)])
    counts = drawn.mean(axis=0)
    assert abs(counts[:20] - 0.5).max() < 0.1 and abs(counts[20:] - 0.7).max() < 0.1
    together = np.corrcoef(drawn[:, :20].T)  # subsets of fixed size would have -1/19 here
    assert abs(together[~np.eye(20, dtype=bool)].mean()) < 0.01


@pytest.mark.parametrize("k", [0, 1, 6])
def test_top_k_out_of_range_is_refused(k: int) -> None:
    with pytest.raises(ValueError, match="top_k"):
        top_k(np.array([0.1, np.nan, 0.3, 0.2, 0.5, 0.4]), k)


@given(epsilon=st.floats(0.01, 30), delta=st.floats(0, 0.2))
@settings(max_examples=60, deadline=None)
def test_total_variation_bound_is_the_best_test_under_the_privacy_region(epsilon: float, delta: float) -> None:
    """TV = max over false positive rates x of 1 - x - f(x), f the trade-off function of (epsilon, delta)-DP."""
    x = np.linspace(0, 1, 200_001)
    trade_off = np.maximum.reduce(
        [np.zeros_like(x), 1 - delta - np.exp(epsilon) * x, np.exp(-epsilon) * (1 - delta - x)]
    )
    corner = (1 - delta) / (1 + np.exp(epsilon))
    best = max((1 - x - trade_off).max(), 1 - 2 * corner)
    bound = float(total_variation_bound(epsilon, delta))
    assert bound == pytest.approx(best, abs=1e-9)
    assert bound == pytest.approx((np.exp(epsilon) - 1 + 2 * delta) / (np.exp(epsilon) + 1), rel=1e-9)


@given(epsilon=st.floats(0.001, 50))
def test_total_variation_is_tighter_than_the_papers_bound(epsilon: float) -> None:
    assert 0 <= total_variation_bound(epsilon, 0.0) <= pure_bound(epsilon) <= 1


def simulated(seed: int, n_models: int, n: int, gain: float) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    masks = rng.random((n_models, n)) < 0.5
    return masks, 0.4 + gain * masks + 0.1 * rng.normal(size=(n_models, n))


def test_mean_score_equals_a_loop_and_undefined_examples_are_left_out() -> None:
    masks, values = simulated(0, 6, 30, 0.2)
    masks[:, 0] = True
    result = private_memorization(masks, values)
    by_hand = [values[masks[:, i], i].mean() - values[~masks[:, i], i].mean() for i in range(1, 30)
               if masks[:, i].any() and (~masks[:, i]).any()]  # fmt: skip
    assert result.mean.value == pytest.approx(np.mean(by_hand))
    assert np.isnan(result.examples.score[0]) and result.examples.n_undefined == 30 - len(by_hand)
    np.testing.assert_allclose(np.nanmean(result.examples.score), np.mean(by_hand))


def test_control_is_near_zero_and_the_effect_is_found() -> None:
    result = private_memorization(*simulated(1, 12, 200, 0.2))
    assert result.mean.low < 0.2 < result.mean.high and result.mean.low > result.shuffled.high
    assert result.shuffled.low < 0 < result.shuffled.high


def paired(seed: int, n_pairs: int, n: int, gain: float) -> tuple[np.ndarray, np.ndarray]:
    """Models of complementary subsets; examples and models differ in level."""
    rng = np.random.default_rng(seed)
    masks = rng.random((n_pairs, n)) < 0.5
    masks = np.stack([masks, ~masks], axis=1).reshape(-1, n)
    level = rng.normal(size=n) + 0.3 * rng.normal(size=(len(masks), 1))
    return masks, 0.4 + gain * masks + 0.1 * level + 0.05 * rng.normal(size=masks.shape)


@pytest.mark.parametrize("draw", [simulated, paired])
def test_intervals_cover_the_truth(draw) -> None:
    results = [private_memorization(*draw(seed, 8 if draw is simulated else 4, 50, 0.1)) for seed in range(200)]
    assert all(r.n_independent == (8 if draw is simulated else 4) for r in results)
    for truth, estimates in ((0.1, [r.mean for r in results]), (0.0, [r.shuffled for r in results])):
        assert np.mean([e.low <= truth <= e.high for e in estimates]) >= 0.9


def test_pairs_leave_no_example_undefined_and_shuffle_among_themselves() -> None:
    masks, values = paired(0, 2, 30, 0.2)
    result = private_memorization(masks, values)
    assert result.examples.n_undefined == 0 and np.all(result.examples.n_in == 2)
    by_pair = [np.mean(np.where(masks[k], 1, -1) * (values[k] - values[k + 1])) for k in (0, 2)]
    interval = stats.ttest_1samp(by_pair, 0).confidence_interval(0.95)
    assert (result.mean.value, result.mean.low) == pytest.approx((np.mean(by_pair), max(-1, interval.low)))


def test_too_few_models_are_refused() -> None:
    masks, values = simulated(0, 1, 5, 0.1)
    with pytest.raises(ValueError, match="two models"):
        private_memorization(masks, values)
    with pytest.raises(ValueError, match="no example has both"):
        private_memorization(np.ones((3, 4), bool), np.ones((3, 4)))
