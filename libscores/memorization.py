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


class RunningMean:
    """Mean over runs of a per-example value, for R sets of run weights at once.

    Args:
        weights: Weight of every run in every set, shape (R, T), >= 0; for example bootstrap counts.
        n_examples: Number N of examples.
    """

    def __init__(self, weights: np.ndarray, n_examples: int) -> None:
        self.weights = np.asarray(weights, dtype=np.float64)
        self.count = np.zeros((len(weights), n_examples))
        self._mean = np.zeros((len(weights), n_examples))
        self._squares = np.zeros((len(weights), n_examples))

    def add(self, run: int, mask: np.ndarray, value: np.ndarray) -> None:
        """Add a run's values, shape (N,), where mask, shape (N,), is true; run numbers a column of the weights."""
        weight = self.weights[:, run, None] * mask
        value = np.where(mask, value, 0.0)
        self.count += weight
        step = np.divide(weight, self.count, out=np.zeros_like(weight), where=self.count > 0)
        delta = value - self._mean
        self._mean += step * delta
        self._squares += weight * delta * (value - self._mean)

    @property
    def mean(self) -> np.ndarray:
        """Means, shape (R, N), NaN where nothing was added."""
        return np.where(self.count > 0, self._mean, np.nan)

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
        n_in: Number of runs that trained on the example.
        n_out: Number of runs that did not.
    """

    score: np.ndarray
    standard_error: np.ndarray
    n_in: np.ndarray
    n_out: np.ndarray

    @property
    def n_undefined(self) -> int:
        """Number of examples for which a group of runs is empty."""
        return int(np.isnan(self.score).sum())


def memorization(runs: Iterable[tuple[np.ndarray, np.ndarray]], n_examples: int) -> Memorization:
    """Estimate the memorization of every example (equation in the module's text).

    Args:
        runs: For every run, whether it trained on each example, bool (N,), and a_t, (N,), in [0, 1]; NaN
            where the run does not have the example.
        n_examples: N.

    Returns:
        Scores, standard errors and group sizes.

    Raises:
        ValueError: There is no run, or a run's arrays have another length.
    """
    groups = RunningMean(np.ones((1, 1)), n_examples), RunningMean(np.ones((1, 1)), n_examples)
    empty = True
    for in_mask, value in runs:
        if in_mask.shape != (n_examples,) or value.shape != (n_examples,):
            raise ValueError(f"a run has shapes {in_mask.shape} and {value.shape}, expected ({n_examples},)")
        add_memorization(groups, 0, in_mask, value)
        empty = False
    if empty:
        raise ValueError("memorization needs at least one run")
    inside, outside = groups
    return Memorization(
        score=(inside.mean - outside.mean)[0],
        standard_error=np.hypot(inside.standard_error, outside.standard_error)[0],
        n_in=inside.count[0].astype(np.int64),
        n_out=outside.count[0].astype(np.int64),
    )


def add_memorization(groups: tuple[RunningMean, RunningMean], run: int, in_mask: np.ndarray, value: np.ndarray) -> None:
    """Add a run to the (in, out) pair of means that memorization is the difference of."""
    known = ~np.isnan(value)
    groups[0].add(run, in_mask & known, value)
    groups[1].add(run, ~in_mask & known, value)
