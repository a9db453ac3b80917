"""Agreement of rankings: closed forms, direct counts, and coverage of the intervals."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from libscores import ranking

costs_lists = st.lists(st.integers(0, 20), min_size=3, max_size=12)


def direct_agreement(a: np.ndarray, b: np.ndarray) -> tuple[float, float, float]:
    """Count pairs for tau-b; average ranks by counting smaller and equal costs."""
    pairs = list(itertools.combinations(range(a.size), 2))
    signs = [(np.sign(a[i] - a[j]), np.sign(b[i] - b[j])) for i, j in pairs]
    concordant = sum(x * y for x, y in signs)
    untied = [sum(1 for pair in signs if pair[side] != 0) for side in (0, 1)]
    ranks = [np.array([np.sum(v < one) + (np.sum(v == one) - 1) / 2 for one in v]) for v in (a, b)]
    tau = concordant / math.sqrt(untied[0] * untied[1])
    return np.corrcoef(*ranks)[0, 1], tau, np.abs(ranks[0] - ranks[1]).mean()


@given(costs_lists, st.randoms(use_true_random=False))
@settings(max_examples=80, deadline=None)
def test_rank_agreement_agrees_with_direct_counts(costs, random):
    a = np.array(costs, dtype=float)
    b = a.copy()
    b[: a.size // 2] = [random.randint(0, 20) for _ in range(a.size // 2)]
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        assert np.isnan(ranking.rank_agreement(a, b)[:2]).all()
    else:
        np.testing.assert_allclose(ranking.rank_agreement(a, b), direct_agreement(a, b), atol=1e-12)


def test_rank_agreement_edges():
    costs = np.array([0.3, 0.1, 0.7, 0.2])
    np.testing.assert_allclose(ranking.rank_agreement(costs, np.exp(costs)), [1, 1, 0], atol=1e-12)
    np.testing.assert_allclose(ranking.rank_agreement(costs, -costs), [-1, -1, 2], atol=1e-12)
    with pytest.raises(ValueError, match="NaN"):
        ranking.rank_agreement(costs, np.array([1, 2, math.nan, 3]))
    with pytest.raises(ValueError, match="same"):
        ranking.rank_agreement(costs, costs[:3])


def test_permuted_points_give_what_chance_gives():
    costs = np.random.default_rng(0).uniform(size=400)
    rho, tau, shift = ranking.permuted_agreement(costs, costs**2, 300)
    assert abs(rho) < 4 / math.sqrt(400 * 300)
    assert abs(tau) < 4 / math.sqrt(400 * 300)
    assert shift == pytest.approx((400**2 - 1) / (3 * 400), rel=0.02)


def test_compare_rankings_separates_adjusted_and_unadjusted_shifts():
    before, removed = np.array([5.0, 6, 7, 8]), np.array([1.0, 2, 5.5])
    table = ranking.compare_rankings(before, before * 2, removed)
    assert table["mean_rank_shift"] == 0
    assert table["mean_rank_shift_unadjusted"] == pytest.approx((2 + 3 + 3 + 3) / 4)
    assert table["cost_ratio_50_percent"] == table["total_cost_ratio"] == 2


def test_cost_ratios_with_zeros():
    found = ranking.cost_ratios(np.array([0.0, 0.0, 2.0, 2.0]), np.array([0.0, 1.0, 0.0, 3.0]))
    np.testing.assert_array_equal(found, [1, math.inf, 0, 1.5])


def test_trajectory_similarity_agrees_with_numpy_per_point():
    generator = np.random.default_rng(0)
    before, after = generator.uniform(size=(2, 9, 5))
    before[:, 3], after[:, 4] = 0.0, 0.5
    found = ranking.trajectory_similarity(before, after)
    for point in range(3):
        a, b = before[:, point], after[:, point]
        assert found.cosine[point] == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
        assert found.correlation[point] == pytest.approx(np.corrcoef(a, b)[0, 1])
        assert found.relative_distance[point] == pytest.approx(np.linalg.norm(a - b) / np.linalg.norm(a))
    assert np.isnan(found.cosine[3])
    assert np.isnan(found.correlation[3:]).all()
    assert found.relative_distance[3] == math.inf


def test_agreement_of_outcomes_is_the_average_over_pairs_of_runs():
    generator = np.random.default_rng(0)
    before, after = generator.integers(0, 2, (3, 4, 5)), generator.integers(0, 2, (2, 4, 5))
    expected = np.mean([np.mean(a == b) for a in before for b in after])
    assert ranking.agreement_of_outcomes(before.mean(axis=0), after.mean(axis=0)) == pytest.approx(expected)


@pytest.mark.parametrize("runs", [3, 8])
def test_intervals_cover_what_new_runs_would_give(runs):
    """Made-up experiments: the expected agreement of averages over as many runs lies inside in 95 % and more."""
    generator = np.random.default_rng(runs)
    level = generator.normal(size=80)
    other = level + 0.4 * generator.normal(size=80)

    def experiment() -> tuple[np.ndarray, np.ndarray]:
        return tuple(np.exp(v + 0.5 * generator.normal(size=(runs, 80))) for v in (level, other))

    def statistic(a: np.ndarray, b: np.ndarray) -> list[float]:
        return ranking.rank_agreement(a, b).tolist()

    expected = np.mean([statistic(*(x.mean(axis=0) for x in experiment())) for _ in range(200)], axis=0)
    inside = np.zeros(3)
    for trial in range(40):
        estimates = ranking.over_runs(statistic, *experiment(), paired=False, n_resamples=60, seed=trial)
        inside += [one.low <= value <= one.high for one, value in zip(estimates, expected, strict=True)]
    assert np.all(inside >= 35)


def test_intervals_of_one_run_are_unknown_and_pairs_must_match():
    a, b = np.random.default_rng(0).uniform(size=(2, 1, 6))
    one = ranking.over_runs(lambda x, y: [float(x.sum() - y.sum())], a, b, paired=True)[0]
    assert one.value == pytest.approx(a.sum() - b.sum())
    assert math.isnan(one.low)
    assert math.isnan(one.high)
    with pytest.raises(ValueError, match="equally many"):
        ranking.over_runs(lambda x, y: [0.0], np.ones((2, 3)), np.ones((3, 3)), paired=True)


def test_pairing_runs_narrows_what_they_share():
    generator = np.random.default_rng(0)
    shared = generator.normal(size=(6, 1))
    a, b = shared + 0.01 * generator.normal(size=(2, 6, 1))
    difference = [ranking.over_runs(lambda x, y: [float(y[0] - x[0])], a, b, paired)[0] for paired in (True, False)]
    assert difference[0].high - difference[0].low < 0.2 * (difference[1].high - difference[1].low)


def test_selected_points():
    points, costs = np.array([40, 10, 30, 20]), np.array([1.0, 3.0, 1.0, 2.0])
    np.testing.assert_array_equal(ranking.select_points(points, costs, 3, "cheapest"), [30, 40, 20])
    np.testing.assert_array_equal(ranking.select_points(points, costs, 2, "dearest"), [10, 20])
    chosen = ranking.select_points(points, costs, 2, "random", seed=5)
    np.testing.assert_array_equal(chosen, ranking.select_points(points[::-1], costs, 2, "random", seed=5))
    assert set(chosen) < set(points)
    with pytest.raises(ValueError, match="choose 5"):
        ranking.select_points(points, costs, 5, "cheapest")


def test_trajectories_that_are_clipped_throughout_have_no_correlation() -> None:
    runs = ranking.Runs(np.ones((2, 4)), np.ones((2, 4)), np.ones((2, 3, 4)), np.ones((2, 3, 4)), np.ones(2))
    table = ranking.compare_runs(runs, runs, paired=True, n_resamples=5)
    assert math.isnan(table["trajectory_correlation"].value) and table["trajectory_cosine"].value == pytest.approx(1)


def test_interval_of_a_pair_of_runs_is_over_points():
    """A signal of variance 1 and noise of variance 1/4: Pearson's r is 0.8, Spearman's (6/pi) arcsin(r/2)."""
    expected, inside = 6 / np.pi * np.arcsin(0.4), []
    for study in range(60):
        rng = np.random.default_rng(study)
        wide, narrow = (
            ranking.pair_interval(*(rng.normal(size=points) + 0.5 * rng.normal(size=(2, points))))["spearman"]
            for points in (40, 640)
        )
        assert narrow.high - narrow.low < wide.high - wide.low
        inside.append(narrow.low <= expected <= narrow.high)
    assert np.mean(inside) >= 0.85
    same = ranking.pair_interval(np.arange(10.0), np.arange(10.0))
    assert [one.value for one in same.values()] == pytest.approx([1, 1, 0])


def test_single_runs_are_compared_with_their_own_pairs():
    """Run k after is run k before but for a little noise; runs differ much: pairs agree, other seeds do not."""
    generator = np.random.default_rng(2)
    level = generator.normal(size=80)
    before = level + generator.normal(size=(4, 80))
    after = before + 0.05 * generator.normal(size=(4, 80))
    paired = ranking.single_run_agreement(before, after, paired=True)
    each = np.array([ranking.rank_agreement(a, b) for a, b in zip(before, after, strict=True)])
    others = np.array([ranking.rank_agreement(before[i], before[j]) for i, j in itertools.permutations(range(4), 2)])
    crossed = np.array([ranking.rank_agreement(a, b) for a in before for b in after])
    unpaired = ranking.single_run_agreement(before, after, paired=False)
    for column, name in enumerate(ranking.RANK_METRICS):
        assert paired[name].value == pytest.approx(each[:, column].mean())
        half = 3.182 * each[:, column].std(ddof=1) / 2  # Student's 97.5 % point at 3 degrees of freedom
        assert paired[name].high == pytest.approx(each[:, column].mean() + half, rel=1e-3)
        assert paired[f"{name}_other_seeds"].value == pytest.approx(others[:, column].mean())
        assert unpaired[name].value == pytest.approx(crossed[:, column].mean())
        assert unpaired[name].low < unpaired[name].value < unpaired[name].high
    assert paired["spearman"].low > paired["spearman_other_seeds"].high


def test_agreement_of_few_single_runs_has_no_interval_where_there_is_none():
    generator = np.random.default_rng(0)
    one = ranking.single_run_agreement(*generator.normal(size=(2, 1, 9)), paired=True)
    assert set(one) == set(ranking.RANK_METRICS) and math.isnan(one["kendall"].low)
    two = ranking.single_run_agreement(*generator.normal(size=(2, 2, 9)), paired=True)
    assert math.isnan(two["spearman_other_seeds"].low) and not math.isnan(two["spearman"].low)
    with pytest.raises(ValueError, match="equally many"):
        ranking.single_run_agreement(np.ones((2, 3)), np.ones((3, 3)), paired=True)


@pytest.mark.parametrize("paired", [True, False])
def test_intervals_of_single_runs_cover(paired):
    """The expected agreement of a pair of runs lies inside in nearly 95 % of experiments of 4 runs."""
    generator = np.random.default_rng(5)
    level = generator.normal(size=60)

    def experiment(runs: int) -> tuple[np.ndarray, np.ndarray]:
        before = level + 0.7 * generator.normal(size=(runs, 60))
        return before, before + 0.3 * generator.normal(size=(runs, 60))

    pairs = [experiment(2) for _ in range(400)]
    own = np.mean([ranking.rank_agreement(a[0], b[0])[0] for a, b in pairs])
    crossed = np.mean([ranking.rank_agreement(a[0], b[1])[0] for a, b in pairs])  # runs of their own
    seeds = np.mean([ranking.rank_agreement(a[0], a[1])[0] for a, _ in pairs])
    inside = []
    for _ in range(60):
        a, b = experiment(4)
        if not paired:
            b = experiment(4)[1]
        found = ranking.single_run_agreement(a, b, paired)
        truth = own if paired else crossed
        inside.append([found["spearman"].low <= truth <= found["spearman"].high,
                       found["spearman_other_seeds"].low <= seeds <= found["spearman_other_seeds"].high])  # fmt: skip
    assert np.all(np.mean(inside, axis=0) >= 0.85)


def test_one_training_measured_twice_is_told_from_two():
    generator = np.random.default_rng(0)
    norms = np.exp(generator.normal(-1, 1.5, (9, 40)))
    first = np.minimum(norms, 1.0)
    assert ranking.nothing_retrained(first, first) == pytest.approx(1)
    assert ranking.nothing_retrained(first, first.astype(np.float32)) == pytest.approx(1)
    assert ranking.nothing_retrained(first, np.minimum(norms * 10 / 9, 1.0)) == pytest.approx(10 / 9)
    assert ranking.nothing_retrained(np.minimum(norms * 0.1, 1.0), first) == pytest.approx(10)
    for change in (1e-3, 0.3):
        other = norms * np.exp(change * generator.normal(size=norms.shape))
        other[0] = norms[0]  # the same initial weights
        assert ranking.nothing_retrained(first, np.minimum(other, 1.0)) is None
    drifting = norms * np.linspace(1, 2, 9)[:, None]
    assert ranking.nothing_retrained(first, np.minimum(drifting, 1.0)) is None
    few = norms.copy()
    few[:4] *= np.exp(generator.normal(size=(4, 40)))
    assert ranking.nothing_retrained(first, np.minimum(few, 1.0)) == pytest.approx(1)
    assert ranking.nothing_retrained(np.ones((3, 4)), np.ones((3, 4))) is None  # clipped throughout: nothing to see


def test_rounds_that_are_saved():
    """Five points, one removed a round: the guess from round 0 misses in round 2, and costs drift by a line."""
    points = np.array([7, 3, 5, 1, 9])
    rounds = [
        ranking.Round(points, np.array([1.0, 2, 3, 4, 5])),
        ranking.Round(points[1:], np.array([3.0, 2.5, 5, 6])),  # point 5 is now cheaper than 3
        ranking.Round(points[[1, 3, 4]], np.array([4.0, 6, 7])),
    ]
    rows = {(row["from_round"], row["round"]): row for row in ranking.saved_rounds(rounds, 1)}
    assert set(rows) == {(0, 1), (0, 2), (1, 2)}
    assert rows[0, 1]["overlap"] == 1 and rows[0, 1]["saved"] == 0
    assert rows[0, 2]["overlap"] == 0.5 and rows[0, 2]["saved"] == 1  # 7 and 3 are guessed, 7 and 5 went
    assert rows[1, 2]["overlap"] == 1
    assert rows[0, 2]["median_error"] == pytest.approx(1 / 3)  # 2/4, 4/6, 5/7
    assert math.isnan(rows[0, 2]["median_error_line"])
    assert rows[1, 2]["median_error_line"] == pytest.approx(0, abs=1e-12)  # 3 + 1, 5 + 1, 6 + 1
    assert rows[0, 2]["spearman"] == pytest.approx(1) and rows[0, 2]["mean_rank_shift"] == 0
