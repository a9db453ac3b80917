"""Memorization against a brute-force loop, known answers and its invariants."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from libscores.memorization import RunningMean, memorization


def brute_force(masks: np.ndarray, values: np.ndarray) -> tuple[list[float], list[float]]:
    """Score every example with plain lists."""
    scores, errors = [], []
    for i in range(masks.shape[1]):
        groups: tuple[list[float], list[float]] = ([], [])
        for mask, value in zip(masks[:, i], values[:, i], strict=True):
            if not math.isnan(value):
                groups[0 if mask else 1].append(float(value))
        if not groups[0] or not groups[1]:
            scores.append(math.nan)
            errors.append(math.nan)
            continue
        means = [sum(group) / len(group) for group in groups]
        scores.append(means[0] - means[1])
        if min(map(len, groups)) < 2:
            errors.append(math.nan)
            continue
        squares = [
            sum((v - mean) ** 2 for v in group) / (len(group) - 1) / len(group)
            for group, mean in zip(groups, means, strict=True)
        ]
        errors.append(math.sqrt(sum(squares)))
    return scores, errors


def random_runs(seed: int, n_runs: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    masks, values = rng.random((n_runs, n)) < 0.7, rng.random((n_runs, n))
    values[rng.random((n_runs, n)) < 0.1] = np.nan
    return masks, values


@given(seed=st.integers(0, 10**6), n_runs=st.integers(1, 12), n=st.integers(1, 8))
@settings(max_examples=60, deadline=None)
def test_equals_brute_force(seed: int, n_runs: int, n: int) -> None:
    masks, values = random_runs(seed, n_runs, n)
    got = memorization(zip(masks, values, strict=True), n)
    scores, errors = brute_force(masks, values)
    np.testing.assert_allclose(got.score, scores, atol=1e-12)
    np.testing.assert_allclose(got.standard_error, errors, atol=1e-9)
    assert got.n_undefined == sum(map(math.isnan, scores))
    known = ~np.isnan(values)
    np.testing.assert_array_equal(got.n_in, (masks & known).sum(0))
    np.testing.assert_array_equal(got.n_out, (~masks & known).sum(0))


@given(seed=st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_order_of_runs_does_not_matter_and_complement_changes_the_sign(seed: int) -> None:
    masks, values = random_runs(seed, 9, 5)
    order = np.random.default_rng(seed).permutation(9)
    got = memorization(zip(masks, values, strict=True), 5)
    shuffled = memorization(zip(masks[order], values[order], strict=True), 5)
    flipped = memorization(zip(~masks, values, strict=True), 5)
    np.testing.assert_allclose(shuffled.score, got.score, atol=1e-12)
    np.testing.assert_allclose(flipped.score, -got.score, atol=1e-12)
    assert np.nanmax(np.abs(got.score)) <= 1


def test_each_mean_divides_by_its_own_group() -> None:
    """The published Link 3 script divides both by all runs: on equal groups it halves the score."""
    masks = np.array([[True], [True], [False], [False]])
    values = np.array([[1.0], [1.0], [0.0], [0.0]])
    assert memorization(zip(masks, values, strict=True), 1).score[0] == 1.0
    assert (values[masks].sum() - values[~masks].sum()) / len(values) == 0.5


def test_fully_memorized_and_not_at_all() -> None:
    masks = np.array([[True, True], [False, False], [True, True], [False, False]])
    values = np.array([[1.0, 1.0], [0.0, 1.0], [1.0, 1.0], [0.0, 1.0]])
    got = memorization(zip(masks, values, strict=True), 2)
    np.testing.assert_array_equal(got.score, [1.0, 0.0])
    np.testing.assert_array_equal(got.standard_error, [0.0, 0.0])


def test_standard_error_covers_the_truth() -> None:
    rng = np.random.default_rng(3)
    n, p_in, p_out = 4000, 0.9, 0.4
    masks = rng.random((60, n)) < 0.7
    values = (rng.random((60, n)) < np.where(masks, p_in, p_out)).astype(float)
    got = memorization(zip(masks, values, strict=True), n)
    covered = np.abs(got.score - (p_in - p_out)) < 1.96 * got.standard_error
    assert 0.91 < covered.mean() < 0.97


@pytest.mark.parametrize(("p_in", "p_out"), [(0.9, 0.4), (1.0, 0.97), (0.98, 0.9), (0.7, 0.7), (1.0, 0.0)])
def test_intervals_of_correctness_cover_the_truth(p_in: float, p_out: float) -> None:
    rng = np.random.default_rng(5)
    masks = rng.random((60, 2000)) < 0.7
    values = (rng.random(masks.shape) < np.where(masks, p_in, p_out)).astype(float)
    got = memorization(zip(masks, values, strict=True), 2000)
    assert ((got.low <= p_in - p_out) & (p_in - p_out <= got.high)).mean() >= 0.9
    assert np.all((got.low <= got.score) & (got.score <= got.high) & (got.high - got.low > 0.05))
    assert got.low.min() >= -1 and got.high.max() <= 1


def test_intervals_of_correctness_are_newcombes() -> None:
    """56 of 70 against 48 of 80: 0.20 [0.0524, 0.3339] (Newcombe 1998, table II, example a, method 10)."""
    masks, values = (np.arange(150) < 70)[:, None], np.r_[np.arange(70) < 56, np.arange(80) < 48].astype(float)[:, None]
    got = memorization(zip(masks, values, strict=True), 1)
    assert (got.score[0], got.low[0], got.high[0]) == pytest.approx((0.2, 0.0524, 0.3339), abs=5e-5)


def test_intervals_of_probabilities_are_of_their_mean() -> None:
    rng = np.random.default_rng(6)
    masks = rng.random((40, 2000)) < 0.6
    values = np.clip(0.5 + 0.3 * masks + 0.1 * rng.normal(size=masks.shape), 0, 1)
    got = memorization(zip(masks, values, strict=True), 2000)
    truth = np.mean(values[masks]) - np.mean(values[~masks])
    assert 0.9 <= ((got.low <= truth) & (truth <= got.high)).mean() < 0.97
    np.testing.assert_allclose(got.high - got.score, 1.959964 * got.standard_error)


def test_shares_that_are_equal_are_equal_to_the_last_bit() -> None:
    """Ranks must not see the order in which runs were added."""
    rng = np.random.default_rng(7)
    value = (np.arange(30) % 3 == 0).astype(float)
    orders = [rng.permutation(30) for _ in range(50)]
    running = RunningMean(np.ones((1, 30)), 50)
    for run in range(30):
        running.add(run, np.ones(50, bool), np.array([value[order[run]] for order in orders]))
    assert np.unique(running.mean).size == 1


@given(seed=st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_whole_weights_are_repeated_runs(seed: int) -> None:
    rng = np.random.default_rng(seed)
    weights = rng.integers(0, 3, size=(2, 6))
    masks, values = rng.random((6, 4)) < 0.6, rng.random((6, 4))
    running = RunningMean(weights, 4)
    for run in range(6):
        running.add(run, masks[run], values[run])
    for row, counts in enumerate(weights):
        repeated = np.repeat(np.arange(6), counts)
        for i in range(4):
            mine = values[repeated, i][masks[repeated, i]]
            assert running.count[row, i] == len(mine)
            assert running.mean[row, i] == pytest.approx(mine.mean() if len(mine) else np.nan, nan_ok=True)
            error = mine.std(ddof=1) / np.sqrt(len(mine)) if len(mine) > 1 else np.nan
            assert running.standard_error[row, i] == pytest.approx(error, abs=1e-9, nan_ok=True)


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one run"):
        memorization([], 3)
    with pytest.raises(ValueError, match=r"expected \(3,\)"):
        memorization([(np.ones(2, bool), np.ones(2))], 3)
