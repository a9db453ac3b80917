"""What a handful of runs can say: how their largest cost grows with them, medians with the runs' share of the doubt."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from libscores.renyi import EPSILON_ORDERS, divergence_at, epsilon, epsilon_offset, step_divergence
from libscores.statistics import NOT_NEGATIVE, SHARE, Bounds, Estimate, student, symmetric_interval


class GrowthWithRuns(NamedTuple):
    """The largest of r runs over random subsets of the runs at hand, r = 1...R, each of length R."""

    share: list[Estimate]
    """Median over points of the largest of r runs over the data-independent cost."""
    epsilon: list[Estimate]
    """Median over points of its epsilon at delta."""


def growth_with_runs(
    sensitivity: np.ndarray,
    step_weights: np.ndarray,
    sample_rate: float,
    noise_multiplier: float,
    order: float,
    delta: float,
    n_subsets: int = 20,
    seed: int = 0,
) -> GrowthWithRuns:
    """Return the median cost by the largest of r runs, for every r, with intervals over runs and points.

    A value at r averages `n_subsets` random subsets of r of the R runs. Its squared standard error adds that of the
    points (bootstrap) and that of the runs: sum over runs of (value without run i - their mean)^2, each at
    min(r, R - 1) of the other runs, which is on average not below the variance for any symmetric statistic, a maximum
    too (Efron, Stein 1981, "The jackknife estimate of variance"). Student's quantile at R - 1; NaN with one run.

    Args:
        sensitivity: s of each run, step and point, shape (R, S, P), in [0, 1].
        step_weights: Steps that each column stands for, shape (S,).
        sample_rate: q in [0, 1].
        noise_multiplier: sigma > 0.
        order: Order of the share, a >= 2.
        delta: Delta of epsilon, in (0, 1).
        n_subsets: About how many random orders of the runs, whose first r are a subset each; every run leads equally
            often.
        seed: Seed of subsets and bootstrap.
    """
    s, weights = np.asarray(sensitivity), np.asarray(step_weights, dtype=np.float64)
    runs, _, points = s.shape
    generator = np.random.default_rng(seed)
    shuffled = [generator.permutation(runs) for _ in range(max(1, n_subsets // runs))]
    sequences = [np.roll(one, shift) for one in shuffled for shift in range(runs)]
    orders = _useful_orders(s, weights, sample_rate, noise_multiplier, delta)
    whole = float(math.ceil(order))
    offsets = epsilon_offset(np.array(orders), delta)
    # First axis: all runs, then without run 0, 1, ...; the same sequences, so that they differ by that run alone.
    shape = (1 + (runs if runs > 1 else 0), len(sequences), runs, points)
    share, epsilons = np.empty(shape), np.full(shape, math.inf)
    for row, divergence in enumerate(divergence_at(s, sample_rate, noise_multiplier, (whole, *orders))):
        for left, subset in np.ndindex(shape[:2]):
            sequence = sequences[subset][sequences[subset] != left - 1]
            largest = np.einsum("rsp,s->rp", np.maximum.accumulate(divergence[sequence], axis=0), weights)
            largest = np.concatenate([largest, largest[-1:]])[:runs]
            if row == 0:
                share[left, subset] = largest
            else:
                np.minimum(epsilons[left, subset], largest + offsets[row - 1], out=epsilons[left, subset])
    share /= float(step_divergence(1.0, sample_rate, noise_multiplier, whole)) * weights.sum()
    return GrowthWithRuns(_growth(share, generator, SHARE), _growth(np.maximum(epsilons, 0.0), generator, NOT_NEGATIVE))


def _growth(
    values: np.ndarray, generator: np.random.Generator, bounds: Bounds, n_resamples: int = 100
) -> list[Estimate]:
    """Return medians over points of values (1 + R, subsets, R, P), averaged over subsets, with their intervals."""
    runs, points = values.shape[2:]
    draws = generator.integers(points, size=(n_resamples, points))
    resampled = np.array([np.median(values[0][..., chosen], axis=-1).mean(axis=0) for chosen in draws])
    medians = np.median(values, axis=-1).mean(axis=1)
    if len(medians) == 1:
        return [Estimate(float(medians[0, 0]), math.nan, math.nan)]
    squared = np.square(medians[1:] - medians[1:].mean(axis=0)).sum(axis=0) + resampled.var(axis=0, ddof=1)
    half = student(runs - 1) * np.sqrt(squared)
    return [symmetric_interval(*numbers, bounds) for numbers in zip(medians[0], half, strict=True)]


def _useful_orders(
    s: np.ndarray, weights: np.ndarray, sample_rate: float, noise_multiplier: float, delta: float, most: int = 16
) -> tuple[float, ...]:
    """Return at most so many orders, from the least to the largest that is best for one run or for the largest of all.

    Best for the points whose epsilon is in the middle fifth, which decide its median.
    """
    totals = np.array(
        [
            np.concatenate([np.einsum("rsp,s->rp", divergence, weights), weights @ divergence.max(axis=0)[None]])
            for divergence in divergence_at(s, sample_rate, noise_multiplier, EPSILON_ORDERS)
        ]
    )
    epsilons, best = epsilon(totals, EPSILON_ORDERS, delta)
    ordered, last = np.sort(epsilons, axis=-1), epsilons.shape[-1] - 1
    first = min(-(-2 * last // 5), last // 2)  # of four points none lies within the middle fifth: the two in the middle
    low, high = ordered[:, [first]], ordered[:, [last - first]]
    middle = best[(epsilons >= low) & (epsilons <= high)]
    between = np.array([order for order in EPSILON_ORDERS if middle.min() <= order <= middle.max()])
    return tuple(between[np.unique(np.linspace(0, between.size - 1, most).round().astype(int))].tolist())


def median_over_runs_and_points(
    values: np.ndarray, n_resamples: int = 200, seed: int = 0, bounds: Bounds = NOT_NEGATIVE
) -> Estimate:
    """Return the median over points of the mean over runs, with an interval that holds both.

    Squared standard errors of a bootstrap over points and of a jackknife over runs are added; Student's quantile at
    R - 1. With one run the interval is NaN.

    Args:
        values: A cost or epsilon of each run and point, shape (R, P).
        n_resamples: Bootstrap resamples of the points.
        seed: Seed of the resampling.
        bounds: What the values can be.
    """
    median, left_out, over_points = _median(values, n_resamples, np.random.default_rng(seed))
    return symmetric_interval(median, _half_width(left_out, over_points), bounds)


def median_difference_over_runs(a: np.ndarray, b: np.ndarray, n_resamples: int = 200, seed: int = 0) -> Estimate:
    """Return the difference of `median_over_runs_and_points` between two samples of points in the same runs.

    Args:
        a: Values of each run and point, shape (R, P).
        b: The same runs' values of other points, shape (R, P').
        n_resamples: Bootstrap resamples of the points.
        seed: Seed of the resampling.
    """
    generator = np.random.default_rng(seed)
    one, other = (_median(values, n_resamples, generator) for values in (a, b))
    return symmetric_interval(one[0] - other[0], _half_width(one[1] - other[1], one[2] + other[2]))


def larger_direction(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return for each point the runs' values of the direction with the larger mean over runs; all of shape (R, P)."""
    return np.where(other.mean(axis=0) > one.mean(axis=0), other, one)


def _median(values: np.ndarray, n_resamples: int, generator: np.random.Generator) -> tuple[float, np.ndarray, float]:
    """Return the median over points of the mean over runs, the same without each run, and its variance over points."""
    runs, points = values.shape
    mean = values.mean(axis=0)
    draws = generator.integers(points, size=(n_resamples, points))
    left_out = np.median((values.sum(axis=0) - values) / (runs - 1), axis=1) if runs > 1 else np.empty(0)
    return float(np.median(mean)), left_out, float(np.median(mean[draws], axis=1).var(ddof=1))


def _half_width(left_out: np.ndarray, over_points: float) -> float:
    runs = left_out.size
    if not runs:
        return math.nan
    over_runs = (runs - 1) / runs * np.square(left_out - left_out.mean()).sum()
    return float(student(runs - 1) * math.sqrt(over_runs + over_points))
