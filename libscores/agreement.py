"""How far two scores, or two markings of the same examples, agree.

Of scores: what one says beside a third (`partial_spearman`), and what noise hides (`reliability`, `corrected`).

Of markings: does a model do on data what was recorded with it, or what it would do on the data in a random order?

Agreement as such says little: at an accuracy of 99 %, results in any order agree on 98 %. What counts is whether the
same examples are marked, for example as errors. With n examples, R of them marked in the record, C now and D in one of
the two only, a random order has D around R + C - 2 R C / n, and the number marked in both is hypergeometric.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import stats

from libscores.statistics import pearson, spearman

FEW = 2
"""Examples on a border that a right model may mark otherwise, by rounding, where next to none is marked."""


@dataclass(frozen=True)
class Overlap:
    """How far two markings of the same examples coincide.

    Attributes:
        n: Number n of examples.
        recorded: Number R marked in the record.
        now: Number C marked now.
        differ: Number D marked in one of the two only.
        p_random: Probability that a random order has as many marked in both, or more.
    """

    n: int
    recorded: int
    now: int
    differ: int
    p_random: float

    @property
    def expected(self) -> float:
        """Mean of `differ` over random orders."""
        return self.recorded + self.now - 2 * self.recorded * self.now / max(self.n, 1)

    def p_right(self, share: float) -> float:
        """Probability of as many differences, or more, in the right order.

        Args:
            share: The right order has at most this share of a random order's differences, and `FEW` more, in the
                mean.
        """
        return float(stats.poisson.sf(self.differ - 1, share * self.expected + FEW))

    def p_rate(self, rate: float) -> float:
        """Probability of as many differences, or more, if an example differs with probability `rate`."""
        return float(stats.binom.sf(self.differ - 1, self.n, rate))


def overlap(recorded: np.ndarray, now: np.ndarray) -> Overlap:
    """Compare two markings.

    Args:
        recorded: Whether an example is marked in the record, bool (N,).
        now: Whether it is marked now, bool (N,).
    """
    n, r, c = len(recorded), int(recorded.sum()), int(now.sum())
    both = int((recorded & now).sum())
    return Overlap(n, r, c, r + c - 2 * both, float(stats.hypergeom.sf(both - 1, n, r, c)))


def below_median(values: np.ndarray) -> tuple[np.ndarray, float]:
    """Mark the lower half of some values, (N,): those below the median or, where there is none, those at it.

    Returns:
        The marks, bool (N,), and a limit between marked and unmarked values (infinite if all are marked).
    """
    low = values < np.median(values)
    low = low if low.any() else values <= np.median(values)
    return low, float((values[low].max() + values[~low].min(initial=np.inf)) / 2)


def lowest(values: np.ndarray, count: int) -> np.ndarray:
    """Mark the `count` lowest of some values, (N,)."""
    marks = np.zeros(len(values), dtype=bool)
    marks[np.argsort(values, kind="stable")[:count]] = True
    return marks


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
    ranks, control = [stats.rankdata(score) for score in (x, y)], stats.rankdata(given)
    control -= control.mean()
    square = control @ control
    left = []
    for rank in ranks:
        rank = rank - rank.mean()
        residual = rank - (rank @ control / square if square > 0 else 0.0) * control
        if residual @ residual <= 1e-12 * (rank @ rank):  # rounding is all that is left
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
    r = correlation(half, other)
    return times * r / (1 + (times - 1) * r) if r > -1 / max(times, 1) else float("nan")


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
