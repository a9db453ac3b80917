"""Measures of agreement of two scores and their uncertainty."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class Estimate:
    """A statistic with a confidence interval of level 0.95."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        unknown = math.isnan(self.low) and math.isnan(self.high)
        return f"{self.value:.4g}" + ("" if unknown else f" [{self.low:.4g}, {self.high:.4g}]")


Bounds = tuple[float, float]
"""The least and the greatest value that a quantity can have."""
UNBOUNDED: Bounds = (-math.inf, math.inf)
NOT_NEGATIVE: Bounds = (0.0, math.inf)
SHARE: Bounds = (0.0, 1.0)
CORRELATION: Bounds = (-1.0, 1.0)


def symmetric_interval(value: float, half_width: float, bounds: Bounds = UNBOUNDED) -> Estimate:
    """Return value +- half_width, cut at what is possible.

    The true value is within the bounds, so cutting leaves the coverage as it is. Fisher's z would stay inside, too, but
    is infinite at +-1, which rank correlations of a few runs reach. The value is cut as well, as rounding may put it
    outside.

    Args:
        value: The estimate.
        half_width: Half the width of the interval, >= 0; NaN makes both ends NaN.
        bounds: What the quantity can be.
    """
    return Estimate(*np.clip([value, value - half_width, value + half_width], *bounds).tolist())


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Return Spearman's rank correlation of two scores, each of shape (N,); ties get mean ranks."""
    return pearson(stats.rankdata(a), stats.rankdata(b))


def pearson(a: np.ndarray, b: np.ndarray) -> float:
    """Return Pearson's correlation of two scores, each of shape (N,); NaN where one is constant."""
    a, b = a - a.mean(), b - b.mean()
    return cosine(a, b)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Return the cosine of the angle between two scores, each of shape (N,); NaN where one is zero."""
    norm = float(np.linalg.norm(a) * np.linalg.norm(b))
    return min(1.0, max(-1.0, float(a @ b) / norm)) if norm > 0 else float("nan")


SIMILARITIES: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "Spearman": spearman,
    "Pearson": pearson,
    "cosine": cosine,
}


def bootstrap_weights(n_runs: int, n_resamples: int, seed: int) -> np.ndarray:
    """Draw bootstrap resamples of runs as counts, shape (n_resamples, n_runs), every row summing to n_runs."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(n_runs, np.full(n_runs, 1 / n_runs), size=n_resamples).astype(np.float64)


def bootstrap_interval(
    value: float, resampled: np.ndarray, n_runs: int | None = None, bounds: Bounds = UNBOUNDED
) -> Estimate:
    """Return value +- 1.96 bootstrap standard errors, cut at what is possible.

    The standard interval (Efron, Tibshirani 1993, chapter 12) and not percentiles: resampling runs adds noise to
    the scores, which attenuates their correlation, so the resampled values centre below the estimate.

    Args:
        value: The statistic on all runs.
        resampled: The statistic on every resample, shape (R,); NaN where undefined.
        n_runs: Number of runs resampled, for a handful: Student's quantile at n_runs - 1 in place of 1.96, and the
            standard error times sqrt(n_runs / (n_runs - 1)), which resampling n_runs of them loses. One run gives NaN.
        bounds: What the statistic can be.
    """
    finite = resampled[np.isfinite(resampled)]
    error = float(finite.std(ddof=1)) if finite.size > 1 else float("nan")
    if n_runs == 1:
        error = float("nan")
    elif n_runs is not None:
        error *= float(stats.t.ppf(0.975, n_runs - 1)) / 1.959964 * (n_runs / (n_runs - 1)) ** 0.5
    return symmetric_interval(value, 1.959964 * error, bounds)


def median_interval(values: np.ndarray) -> Estimate:
    """Return the median of independent values, shape (N,), with the exact interval from order statistics.

    Holds for any distribution (Conover, Practical Nonparametric Statistics, 1999, section 3.2); NaN for N below 6,
    which is too few for 95 %.
    """
    found = stats.quantile_test(values, p=0.5).confidence_interval(0.95)
    return Estimate(float(np.median(values)), float(found.low), float(found.high))


def median_difference(a: np.ndarray, b: np.ndarray, seed: int = 0) -> Estimate:
    """Return median(a) - median(b) of two independent samples, each of shape (N,), with a bootstrap interval."""

    def statistic(x: np.ndarray, y: np.ndarray, axis: int) -> np.ndarray:
        return np.median(x, axis=axis) - np.median(y, axis=axis)

    found = stats.bootstrap((a, b), statistic, n_resamples=2000, method="percentile", rng=np.random.default_rng(seed))
    low, high = found.confidence_interval
    return Estimate(float(statistic(a, b, 0)), float(low), float(high))


def jackknife_interval(value: float, left_out: np.ndarray, bounds: Bounds = UNBOUNDED) -> Estimate:
    """Return value +- t standard errors by the delete-a-group jackknife, t the 97.5 % point of Student's distribution.

    With G groups and theta_g the statistic without group g, the squared standard error is
    (G - 1)/G sum_g (theta_g - mean of theta)^2 (Kott, "The Delete-a-Group Jackknife", Journal of Official
    Statistics 17, 2001); t has G - 1 degrees of freedom. For statistics that are smooth in means over runs; not
    for maxima.

    Args:
        value: The statistic on all runs.
        left_out: The statistic without each of G >= 2 groups of nearly equal size, shape (G,). The interval is NaN
            if one of them is.
        bounds: What the statistic can be; the interval is cut there.
    """
    groups = len(left_out)
    error = np.sqrt((groups - 1) / groups * np.sum((left_out - left_out.mean()) ** 2))
    return symmetric_interval(value, float(stats.t.ppf(0.975, groups - 1) * error), bounds)


@dataclass(frozen=True)
class PermutationTest:
    """Spearman's correlation against random pairings.

    Attributes:
        value: The correlation.
        null_low: 2.5 % point of the correlation of random pairings.
        null_high: 97.5 % point.
        p_value: Two-sided, (1 + pairings at least as extreme) / (1 + pairings).
    """

    value: float
    null_low: float
    null_high: float
    p_value: float


def permutation_test(a: np.ndarray, b: np.ndarray, n_permutations: int, seed: int) -> PermutationTest:
    """Compare Spearman's correlation of a and b, each of shape (N,), with that of a and shuffled b."""
    rng = np.random.default_rng(seed)
    ranks_a, ranks_b = stats.rankdata(a), stats.rankdata(b)
    value = pearson(ranks_a, ranks_b)
    null = np.array([pearson(ranks_a, rng.permutation(ranks_b)) for _ in range(n_permutations)])
    low, high = np.quantile(null, [0.025, 0.975])
    p_value = (1 + np.count_nonzero(np.abs(null) >= abs(value))) / (1 + n_permutations)
    return PermutationTest(value, float(low), float(high), float(p_value))
