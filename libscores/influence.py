"""Influence of training examples on test examples, estimated from runs on random subsets.

Feldman, Zhang 2020, arXiv 2008.03703, section 2: infl(i, j) is the mean of a_t(j) over the runs t that trained on i
minus that over those that did not, a_t(j) the correctness (or the true label's probability) of run t on test example j.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Pairs:
    """The test examples that each training example helps most.

    Attributes:
        test: Rows of test examples, (N, k), the one it helps most first.
        influence: infl of each pair, (N, k); NaN where no run, or every run, holds the example.
        standard_error: Of each, as a difference of two independent means, (N, k).
        chance: 95 % point over examples of the largest influence with memberships given to other runs at random: what
            the largest of so many is without any influence.
    """

    test: np.ndarray
    influence: np.ndarray
    standard_error: np.ndarray
    chance: float


def influences(masks: np.ndarray, values: np.ndarray, block: int = 256) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield infl of a block of training examples on all test examples at a time, (block, M).

    Args:
        masks: Whether each run trained on each example, bool (T, N).
        values: a_t of each run and test example, (T, M).
        block: Training examples of a block; memory is 16 block M bytes beside the arguments.

    Yields:
        Rows of the block and their influence, NaN where no run, or every run, holds the example.
    """
    total, n_runs = values.sum(axis=0, dtype=np.float64), len(values)
    values = values.astype(np.float32)
    for first in range(0, masks.shape[1], block):
        rows = slice(first, first + block)
        inside = masks[:, rows].T.astype(np.float32)
        count = inside.sum(axis=1, dtype=np.float64)[:, None]
        held = (inside @ values).astype(np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            yield (
                rows,
                np.where((count > 0) & (count < n_runs), held / count - (total - held) / (n_runs - count), np.nan),
            )


def top_pairs(masks: np.ndarray, values: np.ndarray, k: int = 5, seed: int = 0, n_control: int = 512) -> Pairs:
    """Return the k test examples that each training example helps most, and what chance gives.

    Args:
        masks: Whether each run trained on each example, bool (T, N).
        values: a_t of each run and test example, (T, M).
        k: Pairs of a training example, at most M.
        seed: Of the control.
        n_control: Training examples of the control.
    """
    n, k = masks.shape[1], min(k, values.shape[1])
    test, influence = np.empty((n, k), dtype=np.int64), np.empty((n, k))
    for rows, found in influences(masks, values):
        best = np.argpartition(-np.nan_to_num(found, nan=-np.inf), k - 1, axis=1)[:, :k]
        chosen = np.take_along_axis(found, best, axis=1)
        order = np.argsort(-np.nan_to_num(chosen, nan=-np.inf), axis=1, kind="stable")
        test[rows], influence[rows] = (np.take_along_axis(part, order, axis=1) for part in (best, chosen))
    rng = np.random.default_rng(seed)
    sample = rng.choice(n, min(n_control, n), replace=False)
    shuffled = influences(masks[rng.permutation(len(masks))][:, sample], values)
    largest = np.concatenate([found.max(axis=1) for _, found in shuffled])
    known = largest[np.isfinite(largest)]
    chance = float(np.quantile(known, 0.95)) if known.size else float("nan")
    return Pairs(test, influence, _errors(masks, values, test), chance)


def _errors(masks: np.ndarray, values: np.ndarray, test: np.ndarray, block: int = 4096) -> np.ndarray:
    """Return the standard errors of some pairs, (N, k)."""
    found = np.empty(test.shape)
    for first in range(0, len(test), block):
        rows = slice(first, first + block)
        mask = masks[:, rows].astype(np.float64)
        for column in range(test.shape[1]):
            value = values[:, test[rows, column]].astype(np.float64)
            error: np.ndarray | float = 0.0
            for group in (mask, 1 - mask):
                with np.errstate(invalid="ignore", divide="ignore"):
                    count = group.sum(axis=0)
                    mean = (group * value).sum(axis=0) / count
                    squares = (group * (value - mean) ** 2).sum(axis=0)
                    error = error + np.where(count > 1, squares / (count - 1) / count, np.nan)
            found[rows, column] = np.sqrt(error)
    return found
