"""Memorization of training examples, estimated from runs on random subsets.

Feldman, Zhang, "What Neural Networks Memorize and Why", NeurIPS 2020, arXiv 2008.03703, Section 2: with runs
t = 1...T trained on random subsets S_t, and a_t(i) the correctness (or the true label's probability) of run t
on example i,

    mem(i) = mean over {t: i in S_t} of a_t(i)  -  mean over {t: i not in S_t} of a_t(i).

Each mean divides by the number of runs of its own group. Undefined (NaN) where a group is empty. Everything
streams over the runs: memory does not grow with their number.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import scipy


class RunningMean:
    """Mean over runs of a per-example value, for R sets of run weights at once.

    Args:
        weights: Weight of every run in every set, shape (R, T), >= 0; for example bootstrap counts.
        n_examples: Number N of examples.
    """

    def __init__(self, weights: np.ndarray, n_examples: int) -> None:
        self.weights = np.asarray(weights, dtype=np.float64)
        self.count = np.zeros((len(weights), n_examples))
        self._total = np.zeros((len(weights), n_examples))
        self._mean = np.zeros((len(weights), n_examples))
        self._squares = np.zeros((len(weights), n_examples))

    def add(self, run: int, mask: np.ndarray, value: np.ndarray) -> None:
        """Add a run's values, shape (N,), where mask, shape (N,), is true; run numbers a column of the weights."""
        weight = self.weights[:, run, None] * mask
        value = np.where(mask, value, 0.0)
        self.count += weight
        self._total += weight * value
        step = np.divide(weight, self.count, out=np.zeros_like(weight), where=self.count > 0)
        delta = value - self._mean
        self._mean += step * delta
        self._squares += weight * delta * (value - self._mean)

    @property
    def mean(self) -> np.ndarray:
        """Means, shape (R, N), NaN where nothing was added: sums over counts, so that equal shares stay equal."""
        return np.divide(self._total, self.count, out=np.full_like(self._total, np.nan), where=self.count > 0)

    @property
    def standard_error(self) -> np.ndarray:
        """Standard errors of the means, shape (R, N), NaN where fewer than two values were added."""
        with np.errstate(invalid="ignore", divide="ignore"):
            variance = np.where(self.count > 1, self._squares / (self.count - 1), np.nan)
            return np.sqrt(variance / self.count)


@dataclass(frozen=True)
class Memorization:
    """Memorization of N examples.

    Attributes:
        score: mem(i), in [-1, 1], NaN where undefined, shape (N,).
        standard_error: Of the difference of two independent means; NaN where a group has fewer than two runs.
        low: Lower end of its 95 % interval. Where every value is 0 or 1, as correctness is, Newcombe's interval of
            a difference of two proportions, from Wilson's of each (Newcombe 1998, "Interval estimation for the
            difference between independent proportions", method 10), which is not empty where all runs of a group
            agree; else score -+ 1.96 standard errors.
        high: Its upper end.
        n_in: Number of runs that trained on the example.
        n_out: Number of runs that did not.
    """

    score: np.ndarray
    standard_error: np.ndarray
    low: np.ndarray
    high: np.ndarray
    n_in: np.ndarray
    n_out: np.ndarray

    @property
    def n_undefined(self) -> int:
        """Number of examples for which a group of runs is empty."""
        return int(np.isnan(self.score).sum())


class MemorizationOfRuns:
    """Memorization of N examples, from runs that are added one at a time."""

    def __init__(self, n_examples: int) -> None:
        self._inside, self._outside = (RunningMean(np.ones((1, 1)), n_examples) for _ in range(2))
        self._proportions = True

    def add(self, in_mask: np.ndarray, value: np.ndarray) -> None:
        """Add a run: whether it trained on each example, bool (N,), and a_t, (N,), NaN where it has none."""
        known = ~np.isnan(value)
        self._proportions &= bool(np.isin(value[known], (0, 1)).all())
        self._inside.add(0, in_mask & known, value)
        self._outside.add(0, ~in_mask & known, value)

    def result(self) -> Memorization:
        """Return the estimate from the runs so far."""
        groups = self._inside, self._outside
        means, counts = [group.mean[0] for group in groups], [group.count[0].astype(np.int64) for group in groups]
        score, error = means[0] - means[1], np.hypot(*(group.standard_error[0] for group in groups))
        below = above = 1.959964 * error
        if self._proportions:
            (low_in, high_in), (low_out, high_out) = map(_wilson, means, counts)
            below = np.hypot(means[0] - low_in, high_out - means[1])
            above = np.hypot(high_in - means[0], means[1] - low_out)
        return Memorization(score, error, np.clip(score - below, -1, 1), np.clip(score + above, -1, 1), *counts)


def _wilson(share: np.ndarray, count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the ends of Wilson's 95 % interval of proportions, (N,) each; NaN where the count is 0."""
    counts = np.stack([np.rint(np.nan_to_num(share) * count).astype(np.int64), count])
    kinds, which = np.unique(counts, axis=1, return_inverse=True)
    ends = np.full((kinds.shape[1], 2), np.nan)
    for row, (successes, total) in enumerate(kinds.T.tolist()):
        if total:
            ends[row] = scipy.stats.binomtest(successes, total).proportion_ci(0.95, "wilson")
    return tuple(ends[which.reshape(-1)].T)


def memorization(runs: Iterable[tuple[np.ndarray, np.ndarray]], n_examples: int) -> Memorization:
    """Estimate the memorization of every example (equation in the module's text).

    Args:
        runs: For every run, whether it trained on each example, bool (N,), and a_t, (N,), in [0, 1]; NaN
            where the run does not have the example.
        n_examples: N.

    Returns:
        Scores, standard errors, intervals and group sizes.

    Raises:
        ValueError: There is no run, or a run's arrays have another length.
    """
    found, empty = MemorizationOfRuns(n_examples), True
    for in_mask, value in runs:
        if in_mask.shape != (n_examples,) or value.shape != (n_examples,):
            raise ValueError(f"a run has shapes {in_mask.shape} and {value.shape}, expected ({n_examples},)")
        found.add(in_mask, value)
        empty = False
    if empty:
        raise ValueError("memorization needs at least one run")
    return found.result()
