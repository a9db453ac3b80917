"""Link 3: privacy against memorization.

Ravikumar et al., ICML 2024, arXiv 2402.18726, Section 5.3: models of each epsilon are trained on random subsets that
hold half of the k most memorized examples and a share of the others; mem(i), with the true label's probability as
the value of a model, is estimated for those k and laid beside what differential privacy allows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from libscores.memorization import Memorization, memorization
from libscores.statistics import CORRELATION, Estimate, bootstrap_interval, bootstrap_weights

FORMAT = 1
"""To be raised when what memorization means changes; results of two formats are never mixed."""


def top_k(memorization: np.ndarray, k: int) -> np.ndarray:
    """Return the rows of the k largest finite scores, sorted by row; ties go to the smaller row.

    Raises:
        ValueError: There are fewer than k finite scores, or k < 2.
    """
    n_finite = int(np.isfinite(memorization).sum())
    if not 2 <= k <= n_finite:
        raise ValueError(f"top_k must be from 2 to the {n_finite} examples with a score, found {k}")
    return np.sort(np.argsort(-np.where(np.isfinite(memorization), memorization, -np.inf), kind="stable")[:k])


def draw_subset(top: np.ndarray, n_examples: int, ratio: float, rng: np.random.Generator) -> np.ndarray:
    """Draw half of the top rows and a share of the others at random.

    Args:
        top: Rows of the most memorized examples, (k,).
        n_examples: Number of rows in all.
        ratio: Share of the other rows, in (0, 1).
        rng: Source of randomness.

    Returns:
        Sorted rows, k // 2 of `top` and round(ratio (n_examples - k)) others.
    """
    others = np.setdiff1d(np.arange(n_examples), top)
    chosen = rng.choice(top, len(top) // 2, replace=False)
    rest = rng.choice(others, round(ratio * len(others)), replace=False)
    return np.sort(np.concatenate([chosen, rest]))


def pure_bound(epsilon: ArrayLike) -> np.ndarray:
    """Return 1 - exp(-epsilon), the paper's bound on memorization under epsilon-differential privacy."""
    return -np.expm1(-np.asarray(epsilon, dtype=float))


def total_variation_bound(epsilon: ArrayLike, delta: float) -> np.ndarray:
    """Return (e^epsilon - 1 + 2 delta) / (e^epsilon + 1), a tighter bound.

    Memorization is a difference of the means of one [0, 1]-valued function under two neighbouring trainings, so it
    is at most their total variation distance, and (epsilon, delta)-differential privacy bounds that by this (Kairouz,
    Oh, Viswanath 2015, arXiv 1311.0776, Section 2, at the two extreme points of the privacy region). It is
    tanh(epsilon / 2) + delta (1 - tanh(epsilon / 2)).
    """
    half = np.tanh(np.asarray(epsilon, dtype=float) / 2)
    return half + delta * (1 - half)


@dataclass(frozen=True)
class PrivateMemorization:
    """Memorization at one epsilon.

    Attributes:
        examples: Scores, standard errors and group sizes of each example.
        mean: Mean score over examples, with a bootstrap interval over models.
        shuffled: The same with every example's membership shuffled over the models: what noise alone gives.
    """

    examples: Memorization
    mean: Estimate
    shuffled: Estimate


def private_memorization(
    in_masks: np.ndarray, values: np.ndarray, n_resamples: int = 200, seed: int = 0
) -> PrivateMemorization:
    """Estimate memorization from models on random subsets.

    Args:
        in_masks: Whether each model trained on each example, bool, (T, N).
        values: True-label probability (or correctness) of each example under each model, (T, N).
        n_resamples: Bootstrap resamples of the models.
        seed: Seed of resamples and shuffles.

    Raises:
        ValueError: There are fewer than two models, or no example has both a model with and one without it.
    """
    n_models = len(values)
    if n_models < 2:
        raise ValueError(f"memorization needs at least two models, found {n_models}")
    rng = np.random.default_rng(seed)
    weights = bootstrap_weights(n_models, n_resamples, seed)
    shuffled = rng.permuted(in_masks, axis=0)
    estimates = []
    for masks in (in_masks, shuffled):
        value = _mean_score(np.ones(n_models), masks, values)
        resampled = np.array([_mean_score(row, masks, values) for row in weights])
        estimates.append(bootstrap_interval(value, resampled, n_models, CORRELATION))
    examples = memorization(zip(in_masks, values, strict=True), values.shape[1])
    if examples.n_undefined == values.shape[1]:
        raise ValueError("no example has both a model that trained on it and one that did not; train more models")
    return PrivateMemorization(examples, *estimates)


def _mean_score(weights: np.ndarray, masks: np.ndarray, values: np.ndarray) -> float:
    """Return the mean over examples of mem(i) for weighted models, NaN if it is undefined for all."""
    inside, outside = weights @ masks, weights @ ~masks
    defined = (inside > 0) & (outside > 0)
    if not defined.any():
        return float("nan")
    means = [(weights @ (values * mask))[defined] for mask in (masks, ~masks)]
    return float(np.mean(means[0] / inside[defined] - means[1] / outside[defined]))
