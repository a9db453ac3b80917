"""What a score says of another beside a third (`partial_spearman`); what noise hides (`reliability`, `corrected`)."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import scipy

from libscores.statistics import pearson, spearman


def partial_spearman(x: np.ndarray, y: np.ndarray, given: np.ndarray) -> float:
    """Return Spearman's correlation of x and y given a third score: what they share beyond what both share with it.

    Pearson's correlation of what a straight line through the ranks of `given` leaves of the ranks of x and of y
    (Kendall 1942, "Partial rank correlation", Biometrika 32, with Spearman's coefficient).

    Args:
        x: Finite scores, (N,).
        y: Finite scores, (N,).
        given: Finite scores, (N,).

    Returns:
        A number in [-1, 1]; NaN where nothing of x or of y is left, as where the ranks of one are those of `given`.
    """
    return partial_pearson(*map(scipy.stats.rankdata, (x, y, given)))


def partial_pearson(x: np.ndarray, y: np.ndarray, given: np.ndarray) -> float:
    """Return Pearson's correlation of what a straight line through a third score, (N,), leaves of two, (N,) each.

    NaN where nothing is left.
    """
    control, left = given - given.mean(), []
    square = control @ control
    for score in (x, y):
        centred = score - score.mean()
        residual = centred - (centred @ control / square if square > 0 else 0.0) * control
        if residual @ residual <= 1e-12 * (centred @ centred):  # rounding is all that is left
            return float("nan")
        left.append(residual)
    return pearson(*left)


def reliability(
    half: np.ndarray,
    other: np.ndarray,
    correlation: Callable[[np.ndarray, np.ndarray], float] = spearman,
    *,
    times: float = 2.0,
) -> float:
    """Return a score's reliability from two halves of the runs, stepped up to all of them.

    With r the correlation of the halves, k r / (1 + (k - 1) r) (Spearman 1910; Brown 1910): the share of the score's
    variance that another set of as many runs would show again.

    Args:
        half: The score from one half of the runs, (N,), finite.
        other: The score from the other half, which shares no run with it, (N,), finite.
        correlation: Measure of agreement.
        times: k, how many times the runs of a half the wanted score rests on; 2 for all of them.

    Returns:
        At most 1; not positive where the halves do not agree; NaN where their correlation is.
    """
    return stepped_up(correlation(half, other), times)


def stepped_up(r: float, times: float = 2.0) -> float:
    """Return k r / (1 + (k - 1) r), at least -1: the reliability of k times as many runs as those that have r."""
    return max(-1.0, times * r / (1 + (times - 1) * r)) if r > -1 / max(times, 1) else float("nan")


def corrected(correlation: float, reliability_x: float, reliability_y: float) -> float:
    """Return a correlation without what noise takes from it: r / sqrt(rel_x rel_y) (Spearman 1904).

    It holds where the noise of the two scores is independent, as where they come from different runs; noise they
    share makes it too large. An estimate: it may lie beyond 1, where chance put a reliability too low.

    Args:
        correlation: Of the two scores.
        reliability_x: Reliability of the one, of as many runs as the correlation rests on.
        reliability_y: Reliability of the other; 1 for a score that is known.

    Returns:
        NaN where a reliability is not positive: there is nothing to correct by.
    """
    if not (reliability_x > 0 and reliability_y > 0):
        return float("nan")
    return correlation / math.sqrt(reliability_x * reliability_y)
