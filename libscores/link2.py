"""Link 2: privacy against curvature and loss.

Ravikumar et al., ICML 2024, arXiv 2402.18726, Section 5.2: over models trained with DP-SGD at several epsilon and
seeds, the test loss and the mean curvature of the loss around examples, with the curves the theory suggests:

    loss(epsilon)      = a + b exp(-c epsilon)
    curvature(epsilon) = (a + b exp(-c epsilon)) (1 - exp(-epsilon)) + e

A mean over seeds divides by the number of seeds (the published notebook divides by the number of epsilon values).
A seed shares subset, start and noise over epsilon, so seeds are what is independent: every interval is over seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy

from libscores.statistics import (
    SHARE,
    UNBOUNDED,
    Bounds,
    Estimate,
    PermutationTest,
    jackknife_interval,
    permutation_test,
    student_interval,
)

FORMAT = 1
"""To be raised when what a test loss means changes; results of two formats are never mixed."""
TRIM = 0.1
"""Share of the examples that the trimmed mean leaves out at each end."""
ALL, MEMBERS, HELD_OUT = "all", "members", "held out"
TOP, REST = "members, most memorized", "members, the rest"


def example_summaries(scores: np.ndarray) -> dict[str, float]:
    """Return the mean, median and 10 % trimmed mean over examples of one model's scores, shape (N,)."""
    return {
        "mean": float(np.mean(scores, dtype=float)),
        "median": float(np.median(scores)),
        "trimmed mean": float(scipy.stats.trim_mean(scores.astype(float), TRIM)),
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
        estimates.append(student_interval(known, bounds))
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
        parameters: Estimates by name, with intervals by a jackknife over seeds; NaN with one seed.
        r_squared: Share of the variance of the E means that the curve explains.
        p_lack_of_fit: P-value of the test that the means lie on the curve (`lack_of_fit`).
        largest_misfit: Upper end of the 95 % interval of the variance that the curve misses, as a share of all.
        n_values: Number E of means.
        curve: The formula.
    """

    parameters: dict[str, Estimate]
    r_squared: float
    p_lack_of_fit: float
    largest_misfit: float
    n_values: int
    curve: Callable[..., np.ndarray]

    def __call__(self, epsilon: np.ndarray) -> np.ndarray:
        """Return the fitted curve."""
        return self.curve(epsilon, *(estimate.value for estimate in self.parameters.values()))


def fit_curve(curve: Callable[..., np.ndarray], epsilons: np.ndarray, values: np.ndarray) -> CurveFit:
    """Fit `loss_curve` or `curvature_curve` to means over seeds by least squares, the decay rate c being positive.

    For a given c both curves are linear in their other parameters, so those are solved exactly and only c is searched,
    over a grid and then locally: the global least squares are found whatever the start.

    Args:
        curve: `loss_curve` or `curvature_curve`.
        epsilons: Privacy budgets, (E,), increasing; at least as many as parameters.
        values: One value per epsilon and seed, (E, S), NaN where a model is missing.

    Raises:
        ValueError: There are fewer epsilons than parameters.
    """
    names = ("a", "b", "c") if curve is loss_curve else ("a", "b", "c", "e")
    if len(epsilons) < len(names):
        raise ValueError(f"{len(names)} parameters cannot be fitted to {len(epsilons)} values of epsilon")
    means, n_seeds = np.nanmean(values, axis=1), values.shape[1]
    best = _least_squares(curve, epsilons, means)
    residual = np.sum((means - curve(epsilons, *best)) ** 2)
    spread = np.sum((means - means.mean()) ** 2)
    left_out = np.full((1, len(names)), np.nan)
    if n_seeds > 1 and (np.isfinite(values).sum(axis=1) > 1).all():
        rest = (np.nanmean(np.delete(values, seed, axis=1), axis=1) for seed in range(n_seeds))
        left_out = np.array([_least_squares(curve, epsilons, one) for one in rest])
    parameters = {}
    for name, value, column in zip(names, best.tolist(), left_out.T, strict=True):
        found = jackknife_interval(value, column) if len(column) > 1 else Estimate(value, np.nan, np.nan)
        parameters[name] = found
    p_value, misfit = lack_of_fit(curve, epsilons, values, best)
    r_squared = float(1 - residual / spread) if spread > 0 else float("nan")
    return CurveFit(parameters, r_squared, p_value, misfit, len(epsilons), curve)


def lack_of_fit(
    curve: Callable[..., np.ndarray], epsilons: np.ndarray, values: np.ndarray, parameters: np.ndarray
) -> tuple[float, float]:
    """Test whether the means over seeds lie on a fitted curve, and bound what it may miss.

    Of the E means, E - P directions are orthogonal to the curve's P derivatives, and zero there if the curve is right.
    Hotelling's T^2 of the seeds' values in these directions takes seeds as independent and their values at different
    epsilon as anything; its confidence region bounds the misfit. Seeds that lack an epsilon do not count.

    Args:
        curve: `loss_curve` or `curvature_curve`.
        epsilons: (E,).
        values: One value per epsilon and seed, (E, S).
        parameters: Of the fit, (P,).

    Returns:
        P-value, and the upper end of the 95 % interval of the variance of the means that the curve misses, as a share
        of all; NaN where there are not more seeds than directions, or no direction.
    """
    whole = values[:, np.isfinite(values).all(axis=0)]
    steps = np.maximum(np.abs(parameters), 1e-6) * 1e-5
    moved = [parameters + sign * step for step in np.diag(steps) for sign in (1, -1)]
    ends = [curve(epsilons, *one) for one in moved]
    derivatives = np.stack([up - down for up, down in zip(ends[::2], ends[1::2], strict=True)], axis=1)
    basis, sizes, _ = np.linalg.svd(derivatives / np.maximum(np.linalg.norm(derivatives, axis=0), 1e-300))
    across = basis[:, np.count_nonzero(sizes > 1e-9 * sizes[0]) :]
    n_directions, n_seeds = across.shape[1], whole.shape[1]
    spread = np.sum((whole.mean(axis=1) - whole.mean()) ** 2) if n_seeds else 0.0
    if not 0 < n_directions < n_seeds or not spread > 0:
        return float("nan"), float("nan")
    off = across.T @ (whole - curve(epsilons, *parameters)[:, None])
    mean, covariance = off.mean(axis=1), np.atleast_2d(np.cov(off)) / n_seeds
    largest = float(np.linalg.eigvalsh(covariance)[-1])
    if largest <= 1e-24 * spread:  # no noise: what is missed is known
        return float(mean @ mean <= 1e-12 * spread), float(mean @ mean / spread)
    scale = n_directions * (n_seeds - 1) / (n_seeds - n_directions)
    square = float(mean @ np.linalg.pinv(covariance) @ mean)
    law = scipy.stats.f(n_directions, n_seeds - n_directions)
    farthest = np.linalg.norm(mean) + np.sqrt(scale * law.ppf(0.95) * largest)
    return float(law.sf(square / scale)), float(farthest**2 / spread)


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
    log_c = float(scipy.optimize.minimize_scalar(lambda t: solve(t)[0], bounds=bounds, method="bounded").x)
    a, b, *rest = solve(log_c)[1]
    return np.array([a, b, np.exp(log_c), *rest])


@dataclass(frozen=True)
class Trend:
    """How a positive value moves with epsilon.

    Attributes:
        slope: Least-squares slope of ln value on ln epsilon within a seed, mean over seeds with Student's interval:
            the value goes as epsilon to that power. Unlike a rank correlation it can move at its extremes, too.
        spearman: Spearman's correlation of epsilon and value over models, against shuffled values: a reference. It has
            no interval, as its steps at few values of epsilon are coarser than one.
    """

    slope: Estimate
    spearman: PermutationTest


def trend(epsilons: np.ndarray, values: np.ndarray, n_permutations: int = 999, seed: int = 0) -> Trend:
    """Measure whether a value rises or falls with epsilon.

    Args:
        epsilons: (E,).
        values: One value per epsilon and seed, (E, S), NaN where a model is missing; slopes are NaN where one is not
            positive.
        n_permutations: Of the reference.
        seed: Seed of the permutations.
    """
    known = np.isfinite(values)
    x, y = np.broadcast_to(np.asarray(epsilons)[:, None], values.shape)[known], values[known]
    logs = np.log(np.where(values > 0, values, np.nan))
    slopes = [
        _slope(np.log(epsilons), column) for column, whole in zip(logs.T, known.T, strict=True) if whole.sum() > 1
    ]
    slope = student_interval(np.array(slopes)) if np.isfinite(slopes).all() else Estimate(np.nan, np.nan, np.nan)
    return Trend(slope, permutation_test(x, y, n_permutations, seed))


def _slope(x: np.ndarray, y: np.ndarray) -> float:
    """Return the least-squares slope where y is known; NaN if it is not at fewer than two x."""
    known = np.isfinite(y)
    return float(scipy.stats.linregress(x[known], y[known]).slope) if known.sum() > 1 else float("nan")


@dataclass(frozen=True)
class CurvatureByGroup:
    """Curvature at each epsilon and seed, over groups of examples.

    A model's members are the examples that it trained on. The most memorized are a fixed set; "members, the rest" are
    the others among the members.

    Attributes:
        epsilons: (E,), increasing.
        seeds: (S,), increasing.
        tables: By group and statistic, its value at each epsilon and seed, (E, S), NaN where a model is missing.
        rising: By group, the share of its examples whose curvature rises with epsilon (slope of ln curvature on ln
            epsilon within a seed above 0), mean over seeds with Student's interval.
    """

    epsilons: np.ndarray
    seeds: np.ndarray
    tables: dict[str, dict[str, np.ndarray]]
    rising: dict[str, Estimate]


def curvature_by_group(
    models: Iterable[tuple[float, int, np.ndarray, np.ndarray]], top: np.ndarray | None = None
) -> CurvatureByGroup:
    """Summarise the curvature of members, of held-out examples, of the most memorized and of the rest.

    Args:
        models: For every model its epsilon and seed, whether it trained on each example, bool (N,), and the curvature,
            (N,); a seed's models train on the same examples. They are read once.
        top: Whether an example is among the most memorized, bool (N,), if that is known.
    """
    found: dict[tuple[float, int], dict[str, dict[str, float]]] = {}
    moments: dict[int, list[Any]] = {}
    groups: dict[int, dict[str, np.ndarray]] = {}
    for epsilon, seed, members, curvature in models:
        groups[seed] = {ALL: np.ones_like(members), MEMBERS: members, HELD_OUT: ~members}
        if top is not None:
            groups[seed] |= {TOP: members & top, REST: members & ~top}
        scores = {name: curvature[mask] for name, mask in groups[seed].items()}
        found[epsilon, seed] = {name: example_summaries(one) for name, one in scores.items() if one.size}
        x, y = np.log(epsilon), np.log(np.maximum(curvature.astype(float), np.finfo(np.float32).tiny))
        sums = moments.setdefault(seed, [0.0, 0.0, np.zeros(len(y)), np.zeros(len(y))])
        moments[seed] = [one + more for one, more in zip(sums, (1.0, x, y, x * y), strict=True)]
    epsilons, seeds = (np.array(sorted(set(column))) for column in zip(*found, strict=True))
    tables: dict[str, dict[str, np.ndarray]] = {}
    for (epsilon, seed), summaries in found.items():
        place = np.searchsorted(epsilons, epsilon), np.searchsorted(seeds, seed)
        for group, summary in summaries.items():
            for statistic, value in summary.items():
                missing = np.full((len(epsilons), len(seeds)), np.nan)
                tables.setdefault(group, {}).setdefault(statistic, missing)[place] = value
    shares: dict[str, list[float]] = {group: [] for group in tables}
    for seed, (count, x, y, xy) in moments.items():
        rises = count * xy - x * y > 0  # the sign of the slope
        for group in shares:
            mask = groups[seed][group]
            shares[group].append(float(np.mean(rises[mask])) if mask.any() and count > 1 else np.nan)
    rising = {group: student_interval(np.array(values), SHARE) for group, values in shares.items()}
    return CurvatureByGroup(epsilons, seeds, tables, rising)
