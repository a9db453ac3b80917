"""Measures of agreement of two scores and their uncertainty."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy


@dataclass(frozen=True)
class Estimate:
    """A statistic with a confidence interval of level 0.95."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return format(self, ".4g")

    def __format__(self, spec: str) -> str:
        """Return value [low, high], each in a format such as .3f; the value alone where there is no interval."""
        value, low, high = (format(number, spec or ".4g") for number in (self.value, self.low, self.high))
        return value if math.isnan(self.low) and math.isnan(self.high) else f"{value} [{low}, {high}]"


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
    return pearson(scipy.stats.rankdata(a), scipy.stats.rankdata(b))


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


def student(degrees: int | np.ndarray) -> Any:
    """Return the 97.5 % point of Student's distribution with so many degrees of freedom; NaN where there are none."""
    return scipy.special.stdtrit(degrees, 0.975)  # scipy.stats takes 0.6 s to import


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
        error *= float(student(n_runs - 1)) / 1.959964 * (n_runs / (n_runs - 1)) ** 0.5
    return symmetric_interval(value, 1.959964 * error, bounds)


def median_interval(values: np.ndarray) -> Estimate:
    """Return the median of independent values, shape (N,), with the exact interval from order statistics.

    Holds for any distribution (Conover, Practical Nonparametric Statistics, 1999, section 3.2); NaN for N below 6,
    which is too few for 95 %.
    """
    found = scipy.stats.quantile_test(values, p=0.5).confidence_interval(0.95)
    return Estimate(float(np.median(values)), float(found.low), float(found.high))


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
    return symmetric_interval(value, float(student(groups - 1) * error), bounds)


def student_interval(values: np.ndarray, bounds: Bounds = UNBOUNDED) -> Estimate:
    """Return the mean of independent values, (N,), with Student's interval; those that are NaN do not count.

    NaN for fewer than two.
    """
    known = values[np.isfinite(values)]
    if known.size < 2:
        return Estimate(float(known.mean()) if known.size else math.nan, math.nan, math.nan)
    half = float(scipy.stats.sem(known) * student(known.size - 1))
    return symmetric_interval(float(known.mean()), half, bounds)


def auroc(marked: np.ndarray, score: np.ndarray) -> float:
    """Return the probability that a score, (N,), is higher for a marked example than for another, ties counting half.

    NaN where all or none are marked, bool (N,).
    """
    n, rest = int(marked.sum()), int((~marked).sum())
    if not n or not rest:
        return math.nan
    return float(scipy.stats.mannwhitneyu(score[marked], score[~marked], method="asymptotic").statistic / (n * rest))


@dataclass(frozen=True)
class PermutationTest:
    """A similarity against random pairings.

    Attributes:
        value: The similarity.
        null_low: 2.5 % point of the similarity of random pairings.
        null_high: 97.5 % point.
        p_value: Two-sided, (1 + pairings at least as far from the mean of all) / (1 + pairings).
        null: Mean of the similarity over all pairings: 0 for a correlation, but not for a cosine.
    """

    value: float
    null_low: float
    null_high: float
    p_value: float
    null: float

    @property
    def random_pairs(self) -> Estimate:
        """What random pairings give, with 95 % of them."""
        return Estimate(self.null, self.null_low, self.null_high)


def permutation_tests(a: np.ndarray, b: np.ndarray, n_permutations: int, seed: int) -> dict[str, PermutationTest]:
    """Compare every one of `SIMILARITIES` of a and b, each of shape (N,), with that of a and shuffled b."""
    rng = np.random.default_rng(seed)
    vectors = {"Spearman": [scipy.stats.rankdata(score) for score in (a, b)], "Pearson": [a, b], "cosine": [a, b]}
    pairs = {}
    for name, pair in vectors.items():
        x, y = (np.asarray(v, dtype=float) - (0.0 if name == "cosine" else v.mean()) for v in pair)
        norm = np.linalg.norm(x) * np.linalg.norm(y)
        pairs[name] = x, y / norm if norm > 0 else y * math.nan
    shuffled: dict[str, list[float]] = {name: [] for name in pairs}
    for _ in range(n_permutations):
        order = rng.permutation(len(a))
        for name, (x, y) in pairs.items():
            shuffled[name].append(float(x @ y[order]))
    tests = {}
    for name, (x, y) in pairs.items():
        value, mean, null = (
            float(x @ y),
            float(x.sum() * y.mean()) if name == "cosine" else 0.0,
            np.array(shuffled[name]),
        )
        low, high = np.quantile(null, [0.025, 0.975])
        extreme = np.count_nonzero(np.abs(null - mean) >= abs(value - mean))
        tests[name] = PermutationTest(value, float(low), float(high), (1 + extreme) / (1 + n_permutations), mean)
    return tests


def permutation_test(a: np.ndarray, b: np.ndarray, n_permutations: int, seed: int) -> PermutationTest:
    """Compare Spearman's correlation of a and b, each of shape (N,), with that of a and shuffled b."""
    return permutation_tests(a, b, n_permutations, seed)["Spearman"]
