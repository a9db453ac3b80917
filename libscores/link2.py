"""Link 2: privacy against curvature and loss.

Ravikumar et al., ICML 2024, arXiv 2402.18726, Section 5.2: over models trained with DP-SGD at several epsilon and
seeds, the test loss and the mean curvature of the loss around examples, with the curves the theory suggests:

    loss(epsilon)      = a + b exp(-c epsilon)
    curvature(epsilon) = (a + b exp(-c epsilon)) (1 - exp(-epsilon)) + e

A mean over seeds divides by the number of seeds (the published notebook divides by the number of epsilon values).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import optimize, stats

from libscores.statistics import (
    CORRELATION,
    UNBOUNDED,
    Bounds,
    Estimate,
    PermutationTest,
    bootstrap_interval,
    permutation_test,
    spearman,
    symmetric_interval,
)

FORMAT = 1
"""To be raised when what a test loss means changes; results of two formats are never mixed."""
TRIM = 0.1
"""Share of the examples that the trimmed mean leaves out at each end."""


def example_summaries(scores: np.ndarray) -> dict[str, float]:
    """Return the mean, median and 10 % trimmed mean over examples of one model's scores, shape (N,)."""
    return {
        "mean": float(np.mean(scores, dtype=float)),
        "median": float(np.median(scores)),
        "trimmed mean": float(stats.trim_mean(scores.astype(float), TRIM)),
    }


def seed_means(values: np.ndarray, bounds: Bounds = UNBOUNDED) -> list[Estimate]:
    """Return the mean over seeds at each epsilon with Student's 95 % interval.

    Args:
        values: One value per epsilon and seed, (E, S), NaN where a model is missing; every row has at least one.
        bounds: What a value can be; intervals are cut there.

    Returns:
        E estimates; the interval is NaN where there is a single seed.
    """
    estimates = []
    for row in values:
        known = row[np.isfinite(row)]
        if not known.size:
            raise ValueError("an epsilon has no finite value")
        error = stats.sem(known) * stats.t.ppf(0.975, known.size - 1) if known.size > 1 else np.nan
        estimates.append(symmetric_interval(float(known.mean()), float(error), bounds))
    return estimates


def loss_curve(epsilon: np.ndarray, a: float, b: float, c: float) -> np.ndarray:
    """Return a + b exp(-c epsilon)."""
    return a + b * np.exp(-c * epsilon)


def curvature_curve(epsilon: np.ndarray, a: float, b: float, c: float, e: float) -> np.ndarray:
    """Return (a + b exp(-c epsilon)) (1 - exp(-epsilon)) + e."""
    return loss_curve(epsilon, a, b, c) * -np.expm1(-epsilon) + e


@dataclass(frozen=True)
class CurveFit:
    """A curve fitted to the means over seeds.

    Attributes:
        parameters: Estimates by name, with bootstrap percentile intervals over seeds.
        r_squared: Share of the variance of the E means that the curve explains.
        curve: The formula.
    """

    parameters: dict[str, Estimate]
    r_squared: float
    curve: Callable[..., np.ndarray]

    def __call__(self, epsilon: np.ndarray) -> np.ndarray:
        """Return the fitted curve."""
        return self.curve(epsilon, *(estimate.value for estimate in self.parameters.values()))


def fit_curve(
    curve: Callable[..., np.ndarray], epsilons: np.ndarray, values: np.ndarray, n_resamples: int = 200, seed: int = 0
) -> CurveFit:
    """Fit `loss_curve` or `curvature_curve` to means over seeds by least squares, the decay rate c being positive.

    For a given c both curves are linear in their other parameters, so those are solved exactly and only c is searched,
    over a grid and then locally: the global least squares are found whatever the start.

    Args:
        curve: `loss_curve` or `curvature_curve`.
        epsilons: Privacy budgets, (E,), increasing; at least as many as parameters.
        values: One value per epsilon and seed, (E, S), NaN where a model is missing.
        n_resamples: Bootstrap resamples of the seeds of each epsilon, for the intervals.
        seed: Seed of the resamples.

    Raises:
        ValueError: There are fewer epsilons than parameters.
    """
    names = ("a", "b", "c") if curve is loss_curve else ("a", "b", "c", "e")
    if len(epsilons) < len(names):
        raise ValueError(f"{len(names)} parameters cannot be fitted to {len(epsilons)} values of epsilon")
    means = np.nanmean(values, axis=1)
    best = _least_squares(curve, epsilons, means)
    residual = np.sum((means - curve(epsilons, *best)) ** 2)
    spread = np.sum((means - means.mean()) ** 2)
    rng = np.random.default_rng(seed)
    resampled = np.array([_least_squares(curve, epsilons, _resample(values, rng)) for _ in range(n_resamples)])
    low, high = np.quantile(resampled, [0.025, 0.975], axis=0)
    parameters = {
        n: Estimate(*map(float, row)) for n, row in zip(names, zip(best, low, high, strict=True), strict=True)
    }
    return CurveFit(parameters, float(1 - residual / spread) if spread > 0 else float("nan"), curve)


def _resample(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return means over a bootstrap resample of the seeds of each epsilon."""
    return np.array([rng.choice(row[np.isfinite(row)], np.isfinite(row).sum()).mean() for row in values])


def _least_squares(curve: Callable[..., np.ndarray], epsilons: np.ndarray, means: np.ndarray) -> np.ndarray:
    def solve(log_c: float) -> tuple[float, np.ndarray]:
        decay = np.exp(-np.exp(log_c) * epsilons)
        columns = [np.ones_like(epsilons), decay]
        if curve is curvature_curve:
            columns = [column * -np.expm1(-epsilons) for column in columns] + [np.ones_like(epsilons)]
        design = np.stack(columns, axis=1)
        solution, *_ = np.linalg.lstsq(design, means, rcond=1e-10)
        return float(np.sum((means - design @ solution) ** 2)), solution

    grid = np.linspace(np.log(0.1 / epsilons.max()), np.log(10 / epsilons.min()), 60)
    start = int(np.argmin([solve(log_c)[0] for log_c in grid]))
    bounds = (grid[max(start - 1, 0)], grid[min(start + 1, len(grid) - 1)])
    log_c = float(optimize.minimize_scalar(lambda t: solve(t)[0], bounds=bounds, method="bounded").x)
    a, b, *rest = solve(log_c)[1]
    return np.array([a, b, np.exp(log_c), *rest])


@dataclass(frozen=True)
class Trend:
    """How a value moves with epsilon over single models.

    Attributes:
        spearman: Spearman's correlation of epsilon and value, with a bootstrap interval over seeds (value +- Student's
            quantile times the standard error, within [-1, 1]; percentiles would miss the value itself).
        permutation: The same correlation against shuffled values.
    """

    spearman: Estimate
    permutation: PermutationTest


def trend(epsilons: np.ndarray, values: np.ndarray, n_resamples: int = 999, seed: int = 0) -> Trend:
    """Measure whether a value rises or falls with epsilon.

    Args:
        epsilons: (E,).
        values: One value per epsilon and seed, (E, S), NaN where a model is missing.
        n_resamples: Bootstrap resamples and permutations.
        seed: Seed of both.
    """
    known = np.isfinite(values)
    x, y = np.broadcast_to(np.asarray(epsilons)[:, None], values.shape)[known], values[known]
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(n_resamples):
        rows = [rng.choice(row[np.isfinite(row)], np.isfinite(row).sum()) for row in values]
        drawn.append(spearman(np.repeat(epsilons, [len(row) for row in rows]), np.concatenate(rows)))
    value = spearman(x, y)
    interval = bootstrap_interval(value, np.array(drawn), values.shape[1], CORRELATION)
    return Trend(interval, permutation_test(x, y, n_resamples, seed))
