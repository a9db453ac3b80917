"""Link 1: memorization against input-loss curvature.

Ravikumar et al., ICML 2024, arXiv 2402.18726, Section 5.1: over an ensemble trained on random subsets, compare
mem(i) with the curvature of the loss around example i, averaged over the models whose training set holds i. The
published notebooks take the maximum over those models under the name of an average; both are here, each under
its own name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice

import numpy as np
from scipy import stats
from scipy.optimize import nnls

from libscores.memorization import RunningMean, add_memorization
from libscores.over_models import over_models
from libscores.statistics import (
    CORRELATION,
    NOT_NEGATIVE,
    SIMILARITIES,
    UNBOUNDED,
    Bounds,
    Estimate,
    PermutationTest,
    bootstrap_interval,
    bootstrap_weights,
    jackknife_interval,
    permutation_test,
    spearman,
)

BIN_WIDTH = 0.02


RunScores = tuple[np.ndarray, np.ndarray, np.ndarray]
"""What Link 1 needs of one run on N examples: whether it trained on each, bool (N,); its correctness or true-label
probability, (N,), NaN where the run does not have the example; the curvature under its model, (N,)."""


@dataclass(frozen=True)
class BinnedCurve:
    """Mean curvature in bins of memorization.

    Attributes:
        memorization: Mean memorization of each non-empty bin, (M,).
        curvature: Mean curvature, (M,).
        standard_error: Standard error of that mean over the examples of the bin, NaN for a single one, (M,).
        count: Examples in the bin, (M,).
        n_outside: Examples with memorization outside [0, 1], which are in no bin.
    """

    memorization: np.ndarray
    curvature: np.ndarray
    standard_error: np.ndarray
    count: np.ndarray
    n_outside: int


def binned_curve(memorization: np.ndarray, curvature: np.ndarray, width: float = BIN_WIDTH) -> BinnedCurve:
    """Average curvature over bins of memorization of a given width on [0, 1]; 1 belongs to the last bin.

    Args:
        memorization: Finite scores, (N,).
        curvature: Finite scores, (N,).
        width: Width of a bin, in (0, 1].

    Raises:
        ValueError: The width is out of range, or no example lies in [0, 1].
    """
    if not 0 < width <= 1:
        raise ValueError(f"the bin width must be in (0, 1], found {width}")
    inside = (memorization >= 0) & (memorization <= 1)
    if not inside.any():
        raise ValueError("no example has a memorization score in [0, 1]")
    mem, curv = memorization[inside], curvature[inside]
    n_bins = int(np.ceil(round(1 / width, 9)))
    which = np.minimum((mem / width + 1e-9).astype(int), n_bins - 1)
    count = np.bincount(which, minlength=n_bins)
    full = count > 0
    mean_mem = np.bincount(which, mem, n_bins)[full] / count[full]
    mean = np.bincount(which, curv, n_bins)[full] / count[full]
    by_bin = np.zeros(n_bins)
    by_bin[full] = mean
    squares = np.bincount(which, (curv - by_bin[which]) ** 2, n_bins)[full]
    count = count[full]
    with np.errstate(invalid="ignore", divide="ignore"):
        standard_error = np.where(count > 1, np.sqrt(squares / (count - 1) / count), np.nan)
    return BinnedCurve(mean_mem, mean, standard_error, count, int((~inside).sum()))


@dataclass(frozen=True)
class SubpopulationFit:
    """curvature ~ a mem sqrt(count) + b count over the bins, a, b >= 0.

    Attributes:
        a: Coefficient of mem sqrt(count).
        b: Coefficient of count.
        r_squared: Share of the bins' variance explained; can be negative, since the fit has no intercept.
    """

    a: float
    b: float
    r_squared: float

    def predict(self, curve: BinnedCurve) -> np.ndarray:
        """Return the fitted curvature of every bin, (M,)."""
        return self.a * curve.memorization * np.sqrt(curve.count) + self.b * curve.count


def subpopulation_fit(curve: BinnedCurve) -> SubpopulationFit:
    """Fit the bins by non-negative least squares (arXiv 2402.18726, Section 5.1)."""
    design = np.stack([curve.memorization * np.sqrt(curve.count), curve.count], axis=1)
    (a, b), _ = nnls(design, curve.curvature)
    spread = np.sum((curve.curvature - curve.curvature.mean()) ** 2)
    residual = np.sum((curve.curvature - design @ [a, b]) ** 2)
    return SubpopulationFit(float(a), float(b), float(1 - residual / spread) if spread > 0 else float("nan"))


@dataclass(frozen=True)
class Link1:
    """Everything Link 1 reports; arrays have one entry per example and NaN where mem is undefined.

    Attributes:
        memorization: mem(i), (N,).
        memorization_se: Its standard error, (N,); NaN if memorization was given.
        curvature: Mean over the models that hold the example, (N,).
        curvature_se: Standard error of that mean, (N,).
        curvature_max: Maximum over the models that hold the example, (N,).
        n_undefined: Examples without a memorization score.
        similarity: Spearman, Pearson and cosine of mem and mean curvature.
        similarity_max: The same with the maximum.
        disjoint_halves: Spearman's correlation of mem from the even runs and mean curvature from the odd runs,
            which share no model and so no noise; NaN if memorization was given.
        permutation: Spearman's correlation against random pairings of the examples.
        slope: Slope of the least-squares line curvature = intercept + slope mem.
        intercept: Its intercept.
        curve: Binned curve.
        subpopulation: Fit of the bins; `subpopulation_a` and `subpopulation_b` are its coefficients.
    """

    memorization: np.ndarray
    memorization_se: np.ndarray
    curvature: np.ndarray
    curvature_se: np.ndarray
    curvature_max: np.ndarray
    n_undefined: int
    similarity: dict[str, Estimate]
    similarity_max: dict[str, Estimate]
    disjoint_halves: Estimate
    permutation: PermutationTest
    slope: Estimate
    intercept: Estimate
    curve: BinnedCurve
    subpopulation: SubpopulationFit
    subpopulation_a: Estimate
    subpopulation_b: Estimate


def link1(
    runs: Callable[[], Iterable[RunScores]],
    n_runs: int,
    n_examples: int,
    *,
    n_resamples: int = 200,
    block: int = 25,
    n_permutations: int = 999,
    seed: int = 0,
) -> Link1:
    """Compute Link 1's scores, statistics and 95 % intervals (bootstrap over models).

    The runs are read once for the scores and once more per block of resamples; memory is a few vectors of
    length N per resample of a block, whatever the number of runs.

    Args:
        runs: Called to read all runs again, in the same order.
        n_runs: Number T of runs, at least 2.
        n_examples: Number N of examples.
        n_resamples: Bootstrap resamples of the runs.
        block: Resamples that are worked on in one reading.
        n_permutations: Random pairings for the control.
        seed: Seed of resamples and pairings.

    Raises:
        ValueError: There are fewer than two runs, or fewer than three examples with a defined score.
    """
    if n_runs < 2:
        raise ValueError(f"Link 1 needs at least two runs, found {n_runs}")
    parity = np.arange(n_runs) % 2
    whole = _Sums(np.stack([np.ones(n_runs), 1.0 - parity, parity]), n_examples).read(runs())
    mem, curv, curv_max = whole.memorization[0], whole.curvature.mean[0], whole.maximum[0]
    defined = np.isfinite(mem) & np.isfinite(curv)
    if defined.sum() < 3:
        raise ValueError(f"only {defined.sum()} examples have a memorization score; train more runs")
    halves = [_halves(whole.memorization[1], whole.curvature.mean[2])]
    statistics = _statistics(mem, curv, curv_max)

    weights = bootstrap_weights(n_runs, n_resamples, seed)
    resampled = []
    for start in range(0, n_resamples, block):
        part = weights[start : start + block]
        sums = _Sums(np.concatenate([part, part * (1 - parity), part * parity]), n_examples).read(runs())
        n = len(part)
        for r in range(n):
            resampled.append(_statistics(sums.memorization[r], sums.curvature.mean[r], sums.maximum[r]))
            halves.append(_halves(sums.memorization[n + r], sums.curvature.mean[2 * n + r]))

    def interval(name: str) -> Estimate:
        return bootstrap_interval(statistics[name], np.array([row[name] for row in resampled]), bounds=_bounds(name))

    curve = binned_curve(mem[defined], curv[defined])
    return Link1(
        memorization=np.where(defined, mem, np.nan),
        memorization_se=whole.memorization_se[0],
        curvature=np.where(defined, curv, np.nan),
        curvature_se=whole.curvature.standard_error[0],
        curvature_max=np.where(defined, curv_max, np.nan),
        n_undefined=int((~defined).sum()),
        similarity={name: interval(f"mean {name}") for name in SIMILARITIES},
        similarity_max={name: interval(f"max {name}") for name in SIMILARITIES},
        disjoint_halves=bootstrap_interval(halves[0], np.array(halves[1:]), bounds=CORRELATION),
        permutation=permutation_test(mem[defined], curv[defined], n_permutations, seed + 1),
        slope=interval("slope"),
        intercept=interval("intercept"),
        curve=curve,
        subpopulation=subpopulation_fit(curve),
        subpopulation_a=interval("a"),
        subpopulation_b=interval("b"),
    )


def link1_of_given(
    memorization: np.ndarray,
    runs: Callable[[], Iterable[RunScores]],
    n_runs: int,
    *,
    n_groups: int = 20,
    n_permutations: int = 999,
    seed: int = 0,
) -> Link1:
    """Compute Link 1 for memorization scores that are given, such as those Feldman and Zhang released.

    The 95 % intervals are a jackknife over groups of models (libscores.statistics.jackknife_interval): they hold
    the models' share of the curvature's uncertainty, while memorization and the examples are taken as they are.
    Similarities with the maximum have no interval (NaN), as the jackknife does not hold for maxima. The runs are
    read twice; memory is a few vectors of length N, whatever the number of runs and groups.

    Args:
        memorization: mem(i), (N,), NaN where unknown.
        runs: Called to read all runs again, in the same order; their correctness is not used.
        n_runs: Number T of runs, at least 2.
        n_groups: Groups of the jackknife, at least 2; T if there are fewer runs.
        n_permutations: Random pairings for the control.
        seed: Seed of the pairings.

    Raises:
        ValueError: There are fewer than two runs or groups, fewer runs are read than `n_runs`, or fewer than three
            examples have both scores.
    """
    if n_runs < 2 or n_groups < 2:
        raise ValueError(f"Link 1 needs at least two runs and two groups, found {n_runs} and {n_groups}")
    n_examples = len(memorization)
    whole = over_models(((in_mask, curvature) for in_mask, _, curvature in runs()), n_examples)
    if whole.n_models != n_runs:
        raise ValueError(f"read {whole.n_models} runs, expected {n_runs}")
    defined = np.isfinite(memorization) & np.isfinite(whole.mean)
    if defined.sum() < 3:
        raise ValueError(f"only {defined.sum()} examples have both scores")
    statistics = _statistics(memorization, whole.mean, whole.maximum)

    total = whole.count * np.nan_to_num(whole.mean)
    models = ((in_mask, curvature) for in_mask, _, curvature in runs())
    left_out = []
    for group in np.array_split(np.arange(n_runs), min(n_groups, n_runs)):
        part = over_models(islice(models, len(group)), n_examples)
        rest = whole.count - part.count
        mean = np.full(n_examples, np.nan)
        np.divide(total - part.count * np.nan_to_num(part.mean), rest, out=mean, where=rest > 0)
        left_out.append(_statistics(memorization, mean))

    def interval(name: str) -> Estimate:
        return jackknife_interval(statistics[name], np.array([row[name] for row in left_out]), _bounds(name))

    mem, curv = memorization[defined], whole.mean[defined]
    curve = binned_curve(mem, curv)
    nan = float("nan")
    return Link1(
        memorization=np.where(defined, memorization, np.nan),
        memorization_se=np.full(n_examples, np.nan),
        curvature=np.where(defined, whole.mean, np.nan),
        curvature_se=whole.standard_error,
        curvature_max=np.where(defined, whole.maximum, np.nan),
        n_undefined=int((~defined).sum()),
        similarity={name: interval(f"mean {name}") for name in SIMILARITIES},
        similarity_max={name: Estimate(statistics[f"max {name}"], nan, nan) for name in SIMILARITIES},
        disjoint_halves=Estimate(nan, nan, nan),
        permutation=permutation_test(mem, curv, n_permutations, seed),
        slope=interval("slope"),
        intercept=interval("intercept"),
        curve=curve,
        subpopulation=subpopulation_fit(curve),
        subpopulation_a=interval("a"),
        subpopulation_b=interval("b"),
    )


class _Sums:
    """Streaming sums over runs for several sets of run weights."""

    def __init__(self, weights: np.ndarray, n_examples: int) -> None:
        self.groups = RunningMean(weights, n_examples), RunningMean(weights, n_examples)
        self.curvature = RunningMean(weights, n_examples)
        self.maximum = np.full((len(weights), n_examples), np.nan)

    def read(self, runs: Iterable[RunScores]) -> _Sums:
        for number, (in_mask, value, curvature) in enumerate(runs):
            add_memorization(self.groups, number, in_mask, value)
            self.curvature.add(number, in_mask, curvature)
            drawn = self.curvature.weights[:, number] > 0
            self.maximum[np.ix_(drawn, in_mask)] = np.fmax(self.maximum[np.ix_(drawn, in_mask)], curvature[in_mask])
        return self

    @property
    def memorization(self) -> np.ndarray:
        return self.groups[0].mean - self.groups[1].mean

    @property
    def memorization_se(self) -> np.ndarray:
        return np.hypot(self.groups[0].standard_error, self.groups[1].standard_error)


def _statistics(mem: np.ndarray, curv: np.ndarray, curv_max: np.ndarray | None = None) -> dict[str, float]:
    defined = np.isfinite(mem) & np.isfinite(curv)
    columns = {"mean": curv[defined]} | ({} if curv_max is None else {"max": curv_max[defined]})
    mem, curv = mem[defined], curv[defined]
    values = dict.fromkeys(("slope", "intercept", "a", "b"), float("nan"))
    if mem.size < 3:  # a resample of a few runs may leave a group empty for nearly every example
        return values | {f"{column} {name}": float("nan") for name in SIMILARITIES for column in columns}
    if np.ptp(mem) > 0:
        line = stats.linregress(mem, curv)
        values |= {"slope": float(line.slope), "intercept": float(line.intercept)}
    if ((mem >= 0) & (mem <= 1)).any():
        fit = subpopulation_fit(binned_curve(mem, curv))
        values |= {"a": fit.a, "b": fit.b}
    for name, similarity in SIMILARITIES.items():
        values |= {f"{column} {name}": similarity(mem, values_of) for column, values_of in columns.items()}
    return values


def _bounds(statistic: str) -> Bounds:
    own = {"slope": UNBOUNDED, "intercept": UNBOUNDED, "a": NOT_NEGATIVE, "b": NOT_NEGATIVE}
    return own.get(statistic, CORRELATION)


def _halves(mem: np.ndarray, curv: np.ndarray) -> float:
    defined = np.isfinite(mem) & np.isfinite(curv)
    return spearman(mem[defined], curv[defined]) if defined.sum() > 2 else float("nan")
