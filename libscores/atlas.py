"""How scores of the same examples agree, pair by pair, and how much of one a few networks buy.

Scores come as columns (K, N), K scores of N examples, NaN where an example has none; every pair is compared on the
examples that have both. Turn scores that are smaller for more exposed examples before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform

from libscores.correlation import corrected, partial_spearman
from libscores.memorization import RunningMean
from libscores.statistics import CORRELATION, SHARE, Estimate, bootstrap_interval, spearman, student_interval

TOPS = (0.01, 0.05, 0.1)
"""Shares of the examples that count as the top."""
TOP = 0.05
"""The one of them that budgets are about."""


class Matrix(NamedTuple):
    """Spearman's correlation of every pair of K scores, with a 95 % interval over examples, each (K, K)."""

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray


def spearman_matrix(columns: np.ndarray) -> Matrix:
    """Correlate every pair of scores.

    The interval is Bonett and Wright's (2000, "Sample size requirements for estimating Pearson, Kendall and Spearman
    correlations", Psychometrika 65): on Fisher's scale, with variance (1 + r^2 / 2) / (n - 3). It is about another draw
    of examples; what the networks' noise does is what the reliability says.

    Args:
        columns: Scores, (K, N).
    """
    value = _pairwise(columns, spearman)
    known = np.isfinite(columns).astype(np.float64)
    n = known @ known.T
    with np.errstate(divide="ignore", invalid="ignore"):
        half = 1.959964 * np.sqrt(np.where(n > 3, (1 + value**2 / 2) / (n - 3), np.nan))
        z = np.arctanh(np.clip(value, -1, 1))
    return Matrix(value, np.tanh(z - half), np.tanh(z + half))


def partial_matrix(columns: np.ndarray, given: np.ndarray) -> np.ndarray:
    """Return Spearman's correlation of every pair given a third score, (N,): (K, K), NaN where nothing is left."""
    return _pairwise(columns, lambda x, y, z: partial_spearman(x, y, z), given)


def corrected_matrix(value: np.ndarray, reliabilities: Sequence[float | None]) -> np.ndarray:
    """Return correlations without what noise takes from them; NaN where a reliability is not known.

    Scores of the same networks share noise, which makes the corrected value of such a pair too large.
    """
    known = [np.nan if one is None else one for one in reliabilities]
    found = np.array([[corrected(value[i, j], a, b) for j, b in enumerate(known)] for i, a in enumerate(known)])
    np.fill_diagonal(found, 1.0)
    return found


def _pairwise(
    columns: np.ndarray, measure: Callable[..., float], given: np.ndarray | None = None, least: int = 4
) -> np.ndarray:
    k = len(columns)
    found = np.full((k, k), np.nan)
    for i in range(k):
        for j in range(i + 1):
            parts = [columns[i], columns[j]] + ([] if given is None else [given])
            both = np.isfinite(parts).all(axis=0)
            if both.sum() >= least:
                found[i, j] = found[j, i] = measure(*(part[both] for part in parts))
    return found


def similar_first(value: np.ndarray) -> np.ndarray:
    """Return an order of K scores in which similar ones are neighbours, from their correlations (K, K).

    Leaves of average linkage on 1 - |r|, turned so that neighbours are as close as can be; unknown pairs count as 0.
    """
    if len(value) < 3:
        return np.arange(len(value))
    distance = 1 - np.abs(np.nan_to_num(value))
    np.fill_diagonal(distance, 0)
    return leaves_list(linkage(squareform(distance, checks=False), "average", optimal_ordering=True))


def top_weights(score: np.ndarray, share: float) -> np.ndarray:
    """Return how much each example belongs to the top of a score, (N,): 1 above the limit, 0 below, a share at it.

    Examples that tie at the limit share the places that are left, as if drawn at random. The weights sum to
    max(1, round(share N)).
    """
    k = max(1, round(share * len(score)))
    limit = np.partition(score, len(score) - k)[len(score) - k]
    above, tied = score > limit, score == limit
    return above + tied * (k - above.sum()) / tied.sum()


def top_overlap(x: np.ndarray, y: np.ndarray, share: float, n_resamples: int = 200, seed: int = 0) -> Estimate:
    """Return the share of the top of x that is in the top of y, with a bootstrap interval over examples.

    Without agreement it is the share itself.

    Args:
        x: Scores, (N,), finite.
        y: Scores, (N,), finite.
        share: Which part of the examples is the top.
        n_resamples: Resamples of the examples; 0 for no interval.
        seed: Of the resamples.
    """

    def overlap(rows: np.ndarray | slice) -> float:
        weights = [top_weights(score[rows], share) for score in (x, y)]
        return float(weights[0] @ weights[1] / weights[0].sum())

    rng = np.random.default_rng(seed)
    resampled = [overlap(rng.integers(0, len(x), len(x))) for _ in range(n_resamples)]
    return bootstrap_interval(overlap(slice(None)), np.array(resampled), bounds=SHARE)


def within_classes(x: np.ndarray, y: np.ndarray, labels: np.ndarray) -> Estimate:
    """Return the mean over classes of Spearman's correlation within a class, with Student's interval over classes.

    Args:
        x: Scores, (N,), finite.
        y: Scores, (N,), finite.
        labels: Classes, (N,); those with fewer than four examples or one value alone are left out.
    """
    found = [
        spearman(x[labels == label], y[labels == label]) for label in np.unique(labels) if (labels == label).sum() > 3
    ]
    return student_interval(np.array(found), CORRELATION)


def disagreements(x: np.ndarray, y: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows that rank highest in x against their rank in y, and the other way round, most first.

    Args:
        x: Scores, (N,), NaN where unknown.
        y: Scores, (N,), NaN where unknown.
        count: How many of each, at most half of the examples with both.
    """
    rows = np.flatnonzero(np.isfinite(x) & np.isfinite(y))
    gap = stats.rankdata(x[rows]) - stats.rankdata(y[rows])
    order, count = np.argsort(-gap, kind="stable"), min(count, len(rows) // 2)
    return rows[order[:count]], rows[order[::-1][:count]]


class Budget(NamedTuple):
    """What some networks buy of a target.

    Attributes:
        sizes: Numbers of networks.
        correlation: Spearman's correlation of the score from that many networks with the target, mean over draws of
            networks, with the spread of 95 % of the draws; none where every draw is the same.
        top: Share of the target's top 5 % that is in the score's, likewise.
        coverage: Share of the examples that have a score.
    """

    sizes: tuple[int, ...]
    correlation: list[Estimate]
    top: list[Estimate]
    coverage: list[float]


def draws_of_runs(n_runs: int, sizes: Sequence[int], n_draws: int, seed: int = 0) -> np.ndarray:
    """Return weights of runs, (sizes x draws, T), each of a random choice of as many even runs as its size says.

    Odd runs are left to the target, so that the two share no noise.
    """
    rng, even = np.random.default_rng(seed), np.arange(0, n_runs, 2)
    weights = np.zeros((len(sizes) * n_draws, n_runs))
    for row, size in enumerate(np.repeat(sizes, n_draws)):
        weights[row, rng.choice(even, size, replace=False)] = 1
    return weights


def combined(
    runs: Iterable[tuple[np.ndarray, np.ndarray]], weights: np.ndarray, n_examples: int, *, difference: bool
) -> np.ndarray:
    """Return a score from several choices of runs, (R, N), NaN where none of them has it.

    Args:
        runs: Of each run whether it trained on each example, bool (N,), and the score, (N,), NaN where it has none.
        weights: Weight of every run in every choice, (R, T).
        n_examples: N.
        difference: The score of an example is the mean over the runs that hold it minus that over the others, as in
            memorization; else the former alone.
    """
    groups = [RunningMean(weights, n_examples) for _ in range(2)]
    for number, (mask, value) in enumerate(runs):
        known = ~np.isnan(value)
        groups[0].add(number, mask & known, value)
        if difference:
            groups[1].add(number, ~mask & known, value)
    return groups[0].mean - (groups[1].mean if difference else 0.0)


def budget(
    runs: Iterable[tuple[np.ndarray, np.ndarray]],
    target: np.ndarray,
    weights: np.ndarray,
    sizes: Sequence[int],
    *,
    difference: bool = False,
    sign: float = 1.0,
) -> Budget:
    """Say how well a score from a few networks ranks examples as a target does.

    Args:
        runs: As for `combined`.
        target: The target, from other runs, (N,), NaN where unknown.
        weights: Of `draws_of_runs` with these sizes.
        sizes: Numbers of networks.
        difference: As for `combined`.
        sign: -1 for a score that falls where the target rises.
    """
    score = sign * combined(runs, weights, len(target), difference=difference)
    n_draws, rows = len(weights) // len(sizes), []
    for one in score:
        both = np.isfinite(one) & np.isfinite(target)
        x, y = one[both], target[both]
        known = both.sum() > 3
        share = top_overlap(x, y, TOP, n_resamples=0).value if known else np.nan
        rows.append((spearman(x, y) if known else np.nan, share, both.mean()))

    def spread(values: np.ndarray, of: np.ndarray) -> Estimate:
        ends = np.quantile(values, [0.025, 0.975]) if np.ptp(of, axis=0).any() else np.full(2, np.nan)
        return Estimate(float(values.mean()), *ends.tolist())

    found = np.array(rows).reshape(len(sizes), n_draws, 3)
    drawn = weights.reshape(len(sizes), n_draws, -1)
    correlation, top = ([spread(part[:, k], of) for part, of in zip(found, drawn, strict=True)] for k in (0, 1))
    return Budget(tuple(sizes), correlation, top, found[:, :, 2].mean(axis=1).tolist())
