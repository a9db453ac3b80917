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
from libscores.statistics import CORRELATION, Estimate, jackknife_interval

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


def draw_subset(top: np.ndarray, n_examples: int, ratio: float, seed: int) -> np.ndarray:
    """Draw about half of the top rows and a share of the others at random.

    Each top row is in or out by a coin of its own, whatever the others: with it and without it are data sets that
    differ by one added or removed example, as the accounting means it. (A subset of fixed size would exchange it for
    another.) Seeds 2j and 2j + 1 hold complementary halves of the top rows, so that every row has models with and
    without it.

    Args:
        top: Rows of the most memorized examples, (k,).
        n_examples: Number of rows in all.
        ratio: Share of the other rows, in (0, 1).
        seed: The subset's own.

    Returns:
        Sorted rows; their expected number is `expected_size`.
    """
    coins = np.random.default_rng([seed // 2, len(top)]).random(len(top)) < 0.5
    others = np.setdiff1d(np.arange(n_examples), top)
    rest = np.random.default_rng([seed, len(top)]).choice(others, round(ratio * len(others)), replace=False)
    return np.sort(np.concatenate([top[coins != bool(seed % 2)], rest]))


def expected_size(k: int, n_examples: int, ratio: float) -> int:
    """Return how many rows `draw_subset` draws of n_examples, k of them top rows, on average, rounded."""
    return k // 2 + round(ratio * (n_examples - k))


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
        mean: Mean score over examples, with an interval by a jackknife over models, over pairs of models where two
            hold complementary halves of the examples.
        shuffled: The same with every example's membership shuffled over the models, within pairs: what noise alone
            gives.
        n_independent: Number of models and pairs that the jackknife leaves out in turn.
    """

    examples: Memorization
    mean: Estimate
    shuffled: Estimate
    n_independent: int


def private_memorization(in_masks: np.ndarray, values: np.ndarray, seed: int = 0) -> PrivateMemorization:
    """Estimate memorization from models on random subsets.

    Args:
        in_masks: Whether each model trained on each example, bool, (T, N).
        values: True-label probability (or correctness) of each example under each model, (T, N).
        seed: Seed of the shuffles.

    Raises:
        ValueError: There are fewer than two models, or no example has both a model with and one without it.
    """
    n_models = len(values)
    if n_models < 2:
        raise ValueError(f"memorization needs at least two models, found {n_models}")
    clusters = _clusters(in_masks)
    rng = np.random.default_rng(seed)
    shuffled = in_masks.copy()
    alone = [cluster[0] for cluster in clusters if len(cluster) == 1]
    for together in ([alone] if alone else []) + [cluster for cluster in clusters if len(cluster) > 1]:
        shuffled[together] = rng.permuted(in_masks[together], axis=0)
    mean, control = (_jackknifed(masks, values, clusters) for masks in (in_masks, shuffled))
    examples = memorization(zip(in_masks, values, strict=True), values.shape[1])
    if examples.n_undefined == values.shape[1]:
        raise ValueError("no example has both a model that trained on it and one that did not")
    return PrivateMemorization(examples, mean, control, len(clusters))


def _jackknifed(masks: np.ndarray, values: np.ndarray, clusters: list[list[int]]) -> Estimate:
    value = _mean_score(masks, values)
    if len(clusters) < 2:
        return Estimate(value, float("nan"), float("nan"))
    rest = [_mean_score(np.delete(masks, cluster, axis=0), np.delete(values, cluster, axis=0)) for cluster in clusters]
    return jackknife_interval(value, np.array(rest), CORRELATION)


def _clusters(masks: np.ndarray) -> list[list[int]]:
    """Return the models' numbers, those of two with complementary masks together."""
    left, found = list(range(len(masks))), []
    while left:
        first = left.pop(0)
        other = next((model for model in left if (masks[model] != masks[first]).all()), None)
        found.append([first] if other is None else [first, other])
        left = [model for model in left if model != other]
    return found


def _mean_score(masks: np.ndarray, values: np.ndarray) -> float:
    """Return the mean over examples of mem(i), NaN if it is undefined for all."""
    inside, outside = masks.sum(axis=0), (~masks).sum(axis=0)
    defined = (inside > 0) & (outside > 0)
    if not defined.any():
        return float("nan")
    means = [(values * mask).sum(axis=0)[defined] for mask in (masks, ~masks)]
    return float(np.mean(means[0] / inside[defined] - means[1] / outside[defined]))
