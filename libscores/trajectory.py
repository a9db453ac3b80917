"""Scores of training examples from what one training recorded of them, a value an epoch.

Every function takes arrays of shape (E, n), E epochs and n examples, and returns (n,).
"""

from __future__ import annotations

import numpy as np


def forgetting_events(correct: np.ndarray) -> np.ndarray:
    """Count the epochs after which a right example is wrong (Toneva et al. 2019, arXiv 1812.05159).

    An example that is never right has E, more than any that is: it was not even learned.
    """
    events = (correct[:-1] & ~correct[1:]).sum(axis=0)
    return np.where(correct.any(axis=0), events, len(correct)).astype(np.float64)


def first_learned_epoch(correct: np.ndarray) -> np.ndarray:
    """Return the first epoch, from 1, in which an example is right; E + 1 for one that never is."""
    return np.where(correct.any(axis=0), correct.argmax(axis=0) + 1, len(correct) + 1).astype(np.float64)


def cumulative(values: np.ndarray, weight_norm: np.ndarray | None = None) -> np.ndarray:
    """Add a value up over epochs: of the loss CSL, of the norm of its gradient by the input CSG.

    Args:
        values: Of each epoch and example.
        weight_norm: Norm of the weights after each epoch, (E,): only epochs up to its (first) peak are counted.
    """
    last = len(values) if weight_norm is None else int(np.argmax(weight_norm)) + 1
    return values[:last].sum(axis=0, dtype=np.float64)


def loss_range(loss: np.ndarray) -> np.ndarray:
    """Return the interquartile range of an example's losses over epochs (LT-IQR, arXiv 2411.05743)."""
    low, high = np.quantile(loss.astype(np.float64), [0.25, 0.75], axis=0)
    return high - low
