"""LiRA, RMIA and influence against slow versions of their definitions, and identities that hold by definition."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from libscores.influence import influences, top_pairs
from libscores.membership import exposure, lira, rmia
from libscores.memorization import memorization

T, N, M = 12, 40, 30


@pytest.fixture
def runs() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Memberships, log-odds of examples, higher where they are held, and log-odds of a population."""
    rng = np.random.default_rng(3)
    masks = np.stack([rng.permutation(N) < 25 for _ in range(T)])
    odds = rng.normal(2, 1, N) + rng.normal(0, 1.0, (T, N)) + masks * np.linspace(0, 3, N)
    return masks, odds.astype(np.float32), rng.normal(2, 1.5, (T, M)).astype(np.float32)


@pytest.mark.parametrize("shared", [False, True])
def test_lira_is_the_ratio_of_normal_densities_of_the_other_runs(runs, shared: bool) -> None:
    masks, odds, _ = runs
    found = [score for _, score in lira(lambda: zip(masks, odds, strict=True), N, shared=shared)]
    for t in (0, 7):
        others = [s for s in range(T) if s != t]
        groups = [[odds[[s for s in others if masks[s, i] == held], i].astype(float) for i in range(N)]
                  for held in (True, False)]  # fmt: skip
        pooled = [
            np.sqrt(sum(((v - v.mean()) ** 2).sum() for v in g if len(v)) / sum(len(v) - 1 for v in g if len(v)))
            for g in groups
        ]
        for i in range(N):
            density = [
                stats.norm.logpdf(odds[t, i], v[i].mean(), spread if shared else v[i].std(ddof=1))
                if len(v[i]) >= (1 if shared else 2) else np.nan
                for v, spread in zip(groups, pooled, strict=True)
            ]  # fmt: skip
            assert found[t][i] == pytest.approx(density[0] - density[1], rel=1e-6, abs=1e-6, nan_ok=True)


@pytest.mark.parametrize("gamma", [1.0, 2.0])
def test_rmia_is_the_share_of_the_population_that_an_example_beats(runs, gamma: float) -> None:
    masks, odds, population = runs
    found = [score for _, score in rmia(lambda: zip(masks, odds, population, strict=True), N, M, gamma)]
    p, q = (1 / (1 + np.exp(-part.astype(float))) for part in (odds, population))
    for t in (0, 7):
        others = np.arange(T) != t
        for i in range(N):
            held, lacking = p[others & masks[:, i], i], p[others & ~masks[:, i], i]
            if not (len(held) and len(lacking)):
                assert np.isnan(found[t][i])
                continue
            ratio = p[t, i] / (0.5 * held.mean() + 0.5 * lacking.mean())
            k = sum(ratio / (q[t, j] / q[others, j].mean()) >= gamma for j in range(M))
            assert found[t][i] == pytest.approx(np.log((k + 0.5) / (M - k + 0.5)))


def test_the_curve_is_that_of_all_scores_sorted(runs) -> None:
    masks, odds, _ = runs
    rounded = (np.round(odds * 4) / 4).astype(np.float32)  # which 16 bits hold exactly
    found = exposure(lambda: zip(masks, rounded, strict=True), T, N)
    members, others = rounded[masks], rounded[~masks]
    area = np.mean((members[:, None] > others) + 0.5 * (members[:, None] == others))
    assert found.area.value == pytest.approx(area) and found.area.low < area < found.area.high
    for rate, got in found.true_at.items():
        best = max(
            (members >= limit).mean()
            for limit in [np.inf, *np.unique(rounded)]
            if (others >= limit).mean() <= rate
        )  # fmt: skip
        assert got.value == pytest.approx(best)
    limit = min(limit for limit in np.unique(rounded) if (others >= limit).mean() <= 0.01)
    shares = [(rounded[masks[:, i], i] >= limit).mean() for i in range(N)]
    assert np.allclose(found.found, shares)


def test_memorization_is_the_advantage_of_correct_means_member(runs) -> None:
    masks, odds, _ = runs
    correct = (odds > 2).astype(float)
    attack = exposure(lambda: zip(masks, correct, strict=True), T, N, answer=lambda score: score)
    known = memorization(zip(masks, correct, strict=True), N)
    assert np.array_equal(attack.advantage, known.score, equal_nan=True)
    assert np.array_equal(attack.standard_error, known.standard_error, equal_nan=True)
    lira_found = exposure(lambda: lira(lambda: zip(masks, odds, strict=True), N, shared=True), T, N)
    assert stats.spearmanr(lira_found.advantage, np.arange(N), nan_policy="omit").statistic > 0.6  # what was planted
    assert lira_found.area.value > 0.65


def test_membership_without_signal_finds_nothing() -> None:
    rng = np.random.default_rng(0)
    masks = rng.random((16, 500)) < 0.5
    odds = rng.normal(size=(16, 500)).astype(np.float32)
    found = exposure(lambda: lira(lambda: zip(masks, odds, strict=True), 500, shared=True), 16, 500)
    assert 0.46 < found.area.value < 0.5 and abs(found.advantage.mean()) < 0.02


def test_scores_are_ordered_by_their_bits() -> None:
    masks = np.array([[True, True, False, False]])
    score = np.array([3.0, -1e-30, -2.0, -1e30])
    found = exposure(lambda: [(masks[0], score)], 1, 4)
    assert found.area.value == 1 and np.isnan(found.area.low) and found.true_at[0.001].value == 1
    with pytest.raises(ValueError, match="both members"):
        exposure(lambda: [(masks[0], np.array([1.0, 1, np.nan, np.nan]))], 1, 4)


def test_influence_is_a_difference_of_means_and_the_best_pairs_are_kept(runs) -> None:
    masks, _, population = runs
    correct = population > 1
    masks = masks.copy()
    masks[:, 3] = True  # every run holds it
    slow = np.array([
        [correct[masks[:, i], j].mean() - (correct[~masks[:, i], j].mean() if (~masks[:, i]).any() else np.nan)
         for j in range(M)] for i in range(N)
    ])  # fmt: skip
    whole = np.concatenate([part for _, part in influences(masks, correct, block=7)])
    assert np.allclose(whole, slow, atol=1e-6, equal_nan=True) and np.isnan(whole[3]).all()
    pairs = top_pairs(masks, correct, k=4)
    for i in set(range(N)) - {3}:
        assert np.allclose(pairs.influence[i], np.sort(slow[i])[::-1][:4], atol=1e-6)
        assert np.allclose(slow[i][pairs.test[i]], pairs.influence[i], atol=1e-6)
    i, j = 5, pairs.test[5, 0]
    groups = correct[masks[:, i], j].astype(float), correct[~masks[:, i], j].astype(float)
    error = np.sqrt(sum(group.var(ddof=1) / len(group) for group in groups))
    assert pairs.standard_error[5, 0] == pytest.approx(error)


def test_chance_is_what_the_largest_of_many_shows_without_influence() -> None:
    rng = np.random.default_rng(1)
    masks, values = rng.random((30, 400)) < 0.7, rng.random((30, 100)) < 0.8
    values[:, 0] = masks[:, 0]  # planted
    pairs = top_pairs(masks, values)
    beyond = np.mean(pairs.influence[1:, 0] > pairs.chance)
    assert 0.01 < beyond < 0.12 and pairs.test[0, 0] == 0 and pairs.influence[0, 0] == pytest.approx(1)
