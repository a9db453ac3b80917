"""Do two rankings of the same points agree: ranks, magnitudes, trajectories, predictions, and how surely."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy import stats

RANK_METRICS = ("spearman", "kendall", "mean_rank_shift")


def cost_ranks(costs: np.ndarray) -> np.ndarray:
    """Return ranks from 0 for the cheapest; equal costs share their mean rank.

    Args:
        costs: Total cost of each point, shape (P,), not NaN.
    """
    if np.isnan(costs).any():
        raise ValueError("costs hold NaN")
    return stats.rankdata(costs) - 1


def rank_agreement(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Return Spearman's rho, Kendall's tau-b and the mean rank shift between two costs of the same points.

    The shift is mean |rank before - rank after| with both ranked among these points only, which is the adjusted one
    when some points were removed in between. Independent rankings give 0, 0 and (P^2 - 1) / (3 P).

    Args:
        before: Total cost of each point, shape (P,), P >= 2.
        after: The same points' cost in the other experiment, shape (P,).

    Returns:
        The three numbers, in the order of `RANK_METRICS`; rho and tau are NaN where all costs are equal.
    """
    if before.shape != after.shape or before.ndim != 1 or before.size < 2:
        raise ValueError(f"expected two costs of the same 2 or more points, got {before.shape} and {after.shape}")
    ranks = cost_ranks(before), cost_ranks(after)
    shift = float(np.abs(ranks[0] - ranks[1]).mean())
    if np.ptp(ranks[0]) == 0 or np.ptp(ranks[1]) == 0:
        return np.array([math.nan, math.nan, shift])
    return np.array([np.corrcoef(*ranks)[0, 1], stats.kendalltau(*ranks).statistic, shift])


def cost_ratios(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Return after / before for each point, shape (P,); 0/0 counts as 1 and a cost that appears as infinity."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where((before == 0) & (after == 0), 1.0, after / before)


class TrajectorySimilarity(NamedTuple):
    """How alike each point's two trajectories are, each of shape (P,)."""

    cosine: np.ndarray
    """Cosine of the two trajectories; NaN where one is zero throughout."""
    correlation: np.ndarray
    """Pearson correlation over steps; NaN where one is constant."""
    relative_distance: np.ndarray
    """||before - after|| / ||before||; NaN where `before` is zero throughout."""


def trajectory_similarity(before: np.ndarray, after: np.ndarray) -> TrajectorySimilarity:
    """Compare two gradient-norm trajectories of every point.

    Args:
        before: Norm at each step, shape (S, P).
        after: The same points and steps in the other experiment, shape (S, P).
    """
    if before.shape != after.shape or before.ndim != 2:
        raise ValueError(f"expected two arrays (steps, points) of one shape, got {before.shape} and {after.shape}")

    def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return (a * b).sum(axis=0) / np.sqrt(np.square(a).sum(axis=0) * np.square(b).sum(axis=0))

    with np.errstate(divide="ignore", invalid="ignore"):
        distance = np.linalg.norm(before - after, axis=0) / np.linalg.norm(before, axis=0)
        constant = (np.ptp(before, axis=0) == 0) | (np.ptp(after, axis=0) == 0)
        correlation = cosine(before - before.mean(axis=0), after - after.mean(axis=0))
        return TrajectorySimilarity(cosine(before, after), np.where(constant, math.nan, correlation), distance)


def prediction_agreement(before: np.ndarray, after: np.ndarray) -> float:
    """Return the share of equal entries of two arrays of predictions (or of correctness), of one shape."""
    if before.shape != after.shape or before.size == 0:
        raise ValueError(f"expected two non-empty arrays of one shape, got {before.shape} and {after.shape}")
    return float((before == after).mean())


class Interval(NamedTuple):
    """A statistic with its confidence interval; each of the statistic's shape."""

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray


def bootstrap_over_runs(
    statistic: Callable[[np.ndarray, np.ndarray], np.ndarray],
    before: np.ndarray,
    after: np.ndarray,
    paired: bool,
    resamples: int = 200,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Return a statistic of two sets of runs with an interval for what as many new runs would give.

    value -+ t * se * sqrt(R/(R-1)), se the standard deviation over bootstrap resamples of the runs and t Student's
    quantile at R - 1 degrees of freedom. Percentiles of the resamples would not do: resampled runs repeat, which adds
    noise and pulls every agreement of averages down, so that the percentile interval of a rank correlation often
    misses its own estimate.

    Args:
        statistic: Takes runs before (R, ...) and after (R', ...), returns an array; averaging over runs is its job.
        before: The first experiment's runs, shape (R, ...).
        after: The second experiment's runs, shape (R', ...).
        paired: Run r of both shares its seed, so both resample alike; needs R = R'.
        resamples: Number of bootstrap resamples.
        seed: Seed of the resampling.
        level: Coverage, in (0, 1).

    Returns:
        Value, low and high; low and high are NaN with fewer than two runs on either side.
    """
    if paired and len(before) != len(after):
        raise ValueError(f"paired runs must be equally many, got {len(before)} and {len(after)}")
    value = np.asarray(statistic(before, after), dtype=np.float64)
    runs = min(len(before), len(after))
    if runs < 2:
        return Interval(value, np.full_like(value, math.nan), np.full_like(value, math.nan))
    generator = np.random.default_rng(seed)
    draws = []
    for _ in range(resamples):
        first = generator.integers(len(before), size=len(before))
        second = first if paired else generator.integers(len(after), size=len(after))
        draws.append(statistic(before[first], after[second]))
    half = stats.t.ppf((1 + level) / 2, runs - 1) * np.std(draws, axis=0, ddof=1) * math.sqrt(runs / (runs - 1))
    return Interval(value, value - half, value + half)


def mean_rank_agreement(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Return `rank_agreement` of the costs averaged over runs, (R, P) and (R', P)."""
    return rank_agreement(before.mean(axis=0), after.mean(axis=0))


def split_half_agreement(runs: np.ndarray, splits: int = 50, seed: int = 0) -> np.ndarray:
    """Return the mean `rank_agreement` between two disjoint halves of the same experiment's runs.

    What retraining alone does to the ranking, with nothing removed: the yardstick for a removal. Halves average half
    as many runs, so it is a little pessimistic.

    Args:
        runs: Total cost of each run and point, shape (R, P), R >= 2.
        splits: Random splits averaged over.
        seed: Seed of the splits.
    """
    if len(runs) < 2:
        raise ValueError(f"needs at least 2 runs, got {len(runs)}")
    generator = np.random.default_rng(seed)
    half = len(runs) // 2
    agreements = []
    for _ in range(splits):
        order = generator.permutation(len(runs))
        agreements.append(mean_rank_agreement(runs[order[:half]], runs[order[half : 2 * half]]))
    return np.mean(agreements, axis=0)


def permuted_agreement(before: np.ndarray, after: np.ndarray, permutations: int = 200, seed: int = 0) -> np.ndarray:
    """Return the mean `rank_agreement` after shuffling which point is which: the negative control, 0 for rho and tau."""
    generator = np.random.default_rng(seed)
    return np.mean([rank_agreement(before, generator.permutation(after)) for _ in range(permutations)], axis=0)
