"""Link 1: memorization against input-loss curvature, and against the loss.

Ravikumar et al., ICML 2024, arXiv 2402.18726, Section 5.1: over an ensemble trained on random subsets, compare
mem(i) with the curvature of the loss around example i, averaged over the models whose training set holds i. The
published notebooks take the maximum over those models under the name of an average; both are here, each under
its own name. The mean loss, which costs next to nothing, stands beside curvature everywhere.

What is estimated is the statistic's expectation over ensembles of so many runs on these examples. Noise of a few runs
lowers a rank correlation; `ScoreLink.corrected` estimates what it tends to with more of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import numpy as np
import scipy

from libscores.correlation import corrected, partial_pearson, stepped_up
from libscores.memorization import Memorization, MemorizationOfRuns
from libscores.over_models import over_models
from libscores.statistics import (
    CORRELATION,
    NOT_NEGATIVE,
    SHARE,
    SIMILARITIES,
    UNBOUNDED,
    Bounds,
    Estimate,
    PermutationTest,
    auroc,
    cosine,
    jackknife_interval,
    pearson,
    permutation_tests,
    spearman,
    student_interval,
)

BIN_WIDTH = 0.02
MEMORIZED = 0.25
"""Memorization above which an example counts as memorized (Feldman, Zhang 2020, Section 3.2)."""
TAILS = (20, 100, 200)
"""Sizes of the sets of the most memorized examples that are laid beside those of the highest scores."""
LEAST_OF_A_CLASS = 10
"""Examples of a class below which it has no correlation of its own."""


class RunScores(NamedTuple):
    """What Link 1 needs of one run on N examples.

    Attributes:
        in_mask: Whether it trained on each example, bool (N,).
        value: Its correctness or true-label probability, (N,), NaN where the run does not have the example.
        curvature: The curvature under its model, (N,).
        loss: The cross-entropy under its model, (N,), if it is known.
    """

    in_mask: np.ndarray
    value: np.ndarray
    curvature: np.ndarray
    loss: np.ndarray | None = None


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
    (a, b), _ = scipy.optimize.nnls(design, curve.curvature)
    spread = np.sum((curve.curvature - curve.curvature.mean()) ** 2)
    residual = np.sum((curve.curvature - design @ [a, b]) ** 2)
    return SubpopulationFit(float(a), float(b), float(1 - residual / spread) if spread > 0 else float("nan"))


@dataclass(frozen=True)
class ScoreLink:
    """One score, curvature or loss, beside memorization.

    Attributes:
        score: Mean over the models that hold the example, (N,).
        similarity: Spearman, Pearson and cosine of memorization and that mean.
        random_pairs: The same of random pairings of the examples: a reference, which a cosine does not put at 0.
        others: Spearman's correlation of memorization and the mean over the models that do *not* hold the example.
        partial: Spearman's correlation given the other score (curvature given loss, loss given curvature); NaN
            without the other.
        auroc: How well the score tells examples of memorization above 0.25 from the others.
        disjoint_halves: Spearman's correlation of memorization from one half of the runs and the score from the other,
            both ways, which share no model and so no noise; NaN if memorization was given.
        reliability: Of the score, from halves of the runs, stepped up to all of them.
        corrected: Spearman's correlation corrected for the noise of both scores (of memorization that was given, for
            that of this score alone): an estimate of what it tends to with more runs; may exceed 1.
        by_runs: Number of runs and Spearman's correlation from that many, mean over disjoint sets of runs with
            Student's interval over them where there are three or more; all runs are the last.
        tails: By size k, the share of the k most memorized examples that are among the k of the highest scores.
        by_class: Spearman's correlation within each class of ten examples or more, if labels were given.
        curve: Binned curve of the score.
    """

    score: np.ndarray
    similarity: dict[str, Estimate]
    random_pairs: dict[str, PermutationTest]
    others: Estimate
    partial: Estimate
    auroc: Estimate
    disjoint_halves: Estimate
    reliability: Estimate
    corrected: Estimate
    by_runs: list[tuple[int, Estimate]]
    tails: dict[int, float]
    by_class: dict[int, float]
    curve: BinnedCurve


@dataclass(frozen=True)
class Link1:
    """Everything Link 1 reports; arrays have one entry per example and NaN where mem is undefined.

    Attributes:
        memorization: mem(i), (N,).
        memorization_se: Its standard error, (N,); NaN if memorization was given.
        memorization_low: Lower end of its 95 % interval, (N,); NaN if memorization was given.
        memorization_high: Its upper end.
        curvature_se: Standard error of the mean curvature over the models that hold the example, (N,).
        curvature_max: Maximum over those models, (N,).
        n_undefined: Examples without a memorization score.
        links: "curvature", and "loss" if it is known.
        similarity_max: Spearman, Pearson and cosine of memorization and the maximum; without interval, as the
            jackknife does not hold for maxima.
        difference: Spearman's correlation with curvature less that with loss; NaN without loss.
        curvature_and_loss: Spearman's correlation of the two.
        reliability: Of memorization; NaN if it was given.
        shuffled: Control: Spearman's correlation of curvature and the memorization that comes out where each run is
            taken for one that trained on the subset of the run before it; NaN if memorization was given.
        slope: Slope of the least-squares line curvature = intercept + slope mem.
        intercept: Its intercept.
        subpopulation: Fit of the bins; `subpopulation_a` and `subpopulation_b` are its coefficients.
    """

    memorization: np.ndarray
    memorization_se: np.ndarray
    memorization_low: np.ndarray
    memorization_high: np.ndarray
    curvature_se: np.ndarray
    curvature_max: np.ndarray
    n_undefined: int
    links: dict[str, ScoreLink]
    similarity_max: dict[str, Estimate]
    difference: Estimate
    curvature_and_loss: Estimate
    reliability: Estimate
    shuffled: Estimate
    slope: Estimate
    intercept: Estimate
    subpopulation: SubpopulationFit
    subpopulation_a: Estimate
    subpopulation_b: Estimate


def link1(
    runs: Callable[[], Iterable[tuple]],
    n_runs: int,
    n_examples: int,
    *,
    memorization: np.ndarray | None = None,
    labels: np.ndarray | None = None,
    n_groups: int = 20,
    n_permutations: int = 999,
    seed: int = 0,
) -> Link1:
    """Compute Link 1's scores, statistics and 95 % intervals.

    Intervals are a jackknife over groups of runs (libscores.statistics.jackknife_interval), for the expectation over
    ensembles of as many runs; examples are taken as they are. A bootstrap over runs is too narrow here, as resampled
    runs that coincide have noise in common: it covered 83 to 95 % where the jackknife covered 95 to 99 %. The runs are
    read twice; memory is some vectors of length N, whatever the number of runs and groups.

    Args:
        runs: Called to read all runs again, in the same order: `RunScores`, or tuples of them without the loss.
        n_runs: Number T of runs, at least 2.
        n_examples: Number N of examples.
        memorization: mem(i), (N,), NaN where unknown, if it is given, such as the scores Feldman and Zhang released;
            the runs' values are not used then, and intervals hold the noise of curvature and loss alone.
        labels: Class of each example, (N,), for correlations within classes.
        n_groups: Groups of the jackknife, at least 2; T if there are fewer runs.
        n_permutations: Random pairings.
        seed: Seed of the pairings.

    Raises:
        ValueError: There are fewer than two runs or groups, fewer runs are read than `n_runs`, or fewer than three
            examples have both scores.
    """
    if n_runs < 2 or n_groups < 2:
        raise ValueError(f"Link 1 needs at least two runs and two groups, found {n_runs} and {n_groups}")
    estimated, whole = MemorizationOfRuns(n_examples), _Sums(n_examples, memorization is None)

    def read() -> Iterable[tuple[np.ndarray, np.ndarray]]:
        for number, run in enumerate(map(RunScores._make, map(_with_loss, runs()))):
            whole.add(number, run)
            if memorization is None:
                estimated.add(run.in_mask, run.value)
            yield run.in_mask, run.curvature

    held = over_models(read(), n_examples)
    if held.n_models != n_runs:
        raise ValueError(f"read {held.n_models} runs, expected {n_runs}")
    unknown = np.full(n_examples, np.nan)
    found = (
        estimated.result() if memorization is None else Memorization(memorization, *[unknown] * 3, *[held.count] * 2)
    )
    defined = np.isfinite(found.score) & np.isfinite(held.mean)
    if defined.sum() < 3:
        raise ValueError(f"only {defined.sum()} examples have a memorization score and curvature; train more runs")
    statistics = _statistics(whole, memorization)

    left_out: list[dict[str, float]] = []
    groups = min(n_groups, n_runs)
    blocks = {
        size: _Sums(n_examples, memorization is None, halves=1) for size in range(1, groups) if groups % size == 0
    }
    smaller: dict[int, list[dict[str, float]]] = {size: [] for size in blocks}
    numbered = enumerate(map(RunScores._make, map(_with_loss, runs())))
    previous = None
    for number, members in enumerate(np.array_split(np.arange(n_runs), groups), start=1):
        part = _Sums(n_examples, memorization is None, previous=previous)
        for place, run in islice(numbered, len(members)):
            part.add(place, run)
        previous = part.previous
        left_out.append(_statistics(whole.without(part), memorization))
        for size, block in blocks.items():
            block.take(part)
            if number % size == 0:
                smaller[size].append(_by_runs(block, memorization))
                block.clear()

    def interval(name: str) -> Estimate:
        if name not in statistics:
            return Estimate(np.nan, np.nan, np.nan)
        return jackknife_interval(statistics[name], np.array([row[name] for row in left_out]), _bounds(name))

    mem = found.score[defined]
    means = whole.means()
    links = {}
    for name in whole.scores:
        score = means[name][0]
        both = np.isfinite(score[defined])
        curve = [
            (size * n_runs // groups, student_interval(np.array([row[name] for row in rows]), CORRELATION))
            for size, rows in smaller.items()
        ]
        links[name] = ScoreLink(
            score=np.where(defined, score, np.nan),
            similarity={kind: interval(f"{name} {kind}") for kind in SIMILARITIES},
            random_pairs=permutation_tests(mem[both], score[defined][both], n_permutations, seed + 1),
            **{
                kind: interval(f"{name} {kind}")
                for kind in ("others", "partial", "auroc", "disjoint_halves", "reliability", "corrected")
            },
            by_runs=[
                *((n, _wide(one, len(smaller[size]))) for size, (n, one) in zip(smaller, curve, strict=True)),
                (n_runs, interval(f"{name} Spearman")),
            ],
            tails=tail_overlap(mem[both], score[defined][both]),
            by_class={} if labels is None else within_classes(mem[both], score[defined][both], labels[defined][both]),
            curve=binned_curve(mem[both], score[defined][both]),
        )
    maximum = held.maximum[defined]
    return Link1(
        memorization=np.where(defined, found.score, np.nan),
        memorization_se=found.standard_error,
        memorization_low=found.low,
        memorization_high=found.high,
        curvature_se=held.standard_error,
        curvature_max=np.where(defined, held.maximum, np.nan),
        n_undefined=int((~defined).sum()),
        links=links,
        similarity_max={name: Estimate(one(mem, maximum), np.nan, np.nan) for name, one in SIMILARITIES.items()},
        difference=interval("difference"),
        curvature_and_loss=interval("curvature and loss"),
        reliability=interval("reliability"),
        shuffled=interval("shuffled"),
        slope=interval("slope"),
        intercept=interval("intercept"),
        subpopulation=subpopulation_fit(links["curvature"].curve),
        subpopulation_a=interval("a"),
        subpopulation_b=interval("b"),
    )


def tail_overlap(mem: np.ndarray, score: np.ndarray) -> dict[int, float]:
    """Return, for each k of `TAILS` below N, how many of the k largest of mem, (N,), are among those of score, (N,).

    As a share; chance gives k / N.
    """
    first, second = (np.argsort(-values, kind="stable") for values in (mem, score))
    return {k: len(np.intersect1d(first[:k], second[:k])) / k for k in TAILS if k < len(mem)}


def within_classes(mem: np.ndarray, score: np.ndarray, labels: np.ndarray) -> dict[int, float]:
    """Return Spearman's correlation within each class of at least ten examples; all arguments are (N,)."""
    classes, sizes = np.unique(labels, return_counts=True)
    large = classes[sizes >= LEAST_OF_A_CLASS].tolist()
    return {label: spearman(mem[labels == label], score[labels == label]) for label in large}


def _with_loss(run: tuple) -> tuple:
    return run if len(run) == len(RunScores._fields) else (*run, None)


def _wide(estimate: Estimate, n_sets: int) -> Estimate:
    """Leave out an interval over two sets of runs, which Student's quantile makes meaningless."""
    return estimate if n_sets > 2 else Estimate(estimate.value, np.nan, np.nan)


class _Sums:
    """Sums over runs of value, curvature and loss, by half of the runs and by whether the run holds the example.

    Args:
        n_examples: N.
        values: Memorization is to be had from the sums; else only the other scores are.
        halves: 2, or 1 to keep all runs together.
        previous: Membership of the run before the first that is added, bool (N,).
    """

    def __init__(self, n_examples: int, values: bool, *, halves: int = 2, previous: np.ndarray | None = None) -> None:
        self.n_examples, self.values, self.halves, self.previous = n_examples, values, halves, previous
        self.sums: dict[str, np.ndarray] = {}
        self.counts: dict[str, np.ndarray] = {}

    @property
    def scores(self) -> list[str]:
        return [name for name in ("curvature", "loss") if name in self.sums]

    def add(self, number: int, run: RunScores) -> None:
        columns = {"curvature": run.curvature} | ({} if run.loss is None else {"loss": run.loss})
        if self.values:
            columns["value"] = run.value
        for name, values in columns.items():
            self._add(name, number % self.halves, run.in_mask, values)
        if self.values and self.previous is not None:
            self._add("shuffled", number % self.halves, self.previous, run.value)
        self.previous = run.in_mask

    def _add(self, name: str, half: int, mask: np.ndarray, values: np.ndarray) -> None:
        if name not in self.sums:
            shape = (self.halves, 2, self.n_examples)
            self.sums[name], self.counts[name] = np.zeros(shape), np.zeros(shape, np.int32)
        known = np.isfinite(values)
        for group, chosen in enumerate((mask & known, ~mask & known)):
            total = self.sums[name][half, group]
            np.add(total, values, out=total, where=chosen)
            self.counts[name][half, group] += chosen

    def take(self, other: _Sums) -> None:
        """Add other sums, all halves together."""
        for mine, theirs in ((self.sums, other.sums), (self.counts, other.counts)):
            for name, values in theirs.items():
                mine[name] = values.sum(axis=0, keepdims=True) + mine.get(name, 0)

    def clear(self) -> None:
        self.sums, self.counts = {}, {}

    def without(self, part: _Sums) -> _Sums:
        rest = _Sums(self.n_examples, self.values)
        for kept, mine, theirs in ((rest.sums, self.sums, part.sums), (rest.counts, self.counts, part.counts)):
            kept.update({name: values - theirs.get(name, 0) for name, values in mine.items()})
        return rest

    def means(self, half: int | None = None) -> dict[str, np.ndarray]:
        """Return means by name, each (2, N): over the models that hold the example, and over the others."""
        chosen = slice(None) if half is None else slice(half, half + 1)
        found = {}
        for name, sums in self.sums.items():
            total, count = sums[chosen].sum(axis=0), self.counts[name][chosen].sum(axis=0)
            found[name] = np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
        return found


def _memorization(means: Mapping[str, np.ndarray], name: str = "value") -> np.ndarray:
    return means[name][0] - means[name][1]


def _statistics(sums: _Sums, given: np.ndarray | None) -> dict[str, float]:
    """Return every statistic by name; NaN where fewer than three examples have what it takes."""
    means = sums.means()
    mem = _memorization(means) if given is None else given
    curv = means["curvature"][0]
    defined = np.isfinite(mem) & np.isfinite(curv)
    for name in sums.scores:
        defined &= np.isfinite(means[name][0])
    values: dict[str, float] = dict.fromkeys(
        ("slope", "intercept", "a", "b", "difference", "curvature and loss"), np.nan
    )
    kinds = (*SIMILARITIES, "others", "partial", "auroc", "disjoint_halves", "reliability", "corrected")
    values |= {f"{name} {kind}": np.nan for name in sums.scores for kind in kinds}
    if defined.sum() < 3:  # leaving out some of a few runs may leave a group empty for nearly every example
        return values | {"shuffled": np.nan, "reliability": np.nan}
    known = mem[defined]
    if np.ptp(known) > 0:
        line = scipy.stats.linregress(known, curv[defined])
        values |= {"slope": float(line.slope), "intercept": float(line.intercept)}
    if ((known >= 0) & (known <= 1)).any():
        fit = subpopulation_fit(binned_curve(known, curv[defined]))
        values |= {"a": fit.a, "b": fit.b}
    ranks = {name: scipy.stats.rankdata(means[name][0][defined]) for name in sums.scores}
    own = scipy.stats.rankdata(known)
    for name, rank in ranks.items():
        score = means[name][0][defined]
        values |= {
            f"{name} Spearman": pearson(own, rank),
            f"{name} Pearson": pearson(known, score),
            f"{name} cosine": cosine(known, score),
            f"{name} others": _spearman(mem, means[name][1]),
            f"{name} auroc": auroc(known > MEMORIZED, rank),
        }
    if len(ranks) == 2:
        values |= {
            "curvature partial": partial_pearson(own, ranks["curvature"], ranks["loss"]),
            "loss partial": partial_pearson(own, ranks["loss"], ranks["curvature"]),
            "difference": values["curvature Spearman"] - values["loss Spearman"],
            "curvature and loss": pearson(ranks["curvature"], ranks["loss"]),
        }
    values["shuffled"] = _spearman(_memorization(means, "shuffled"), curv) if "shuffled" in means else np.nan
    return values | _of_halves(sums, given, values)


def _of_halves(sums: _Sums, given: np.ndarray | None, values: Mapping[str, float]) -> dict[str, float]:
    """Return what takes the two halves of the runs: reliability, disjoint halves, correction."""
    halves = [sums.means(half) for half in (0, 1)]
    pairs = {name: (halves[0][name][0], halves[1][name][0]) for name in sums.scores}
    if given is None:
        pairs["mem"] = _memorization(halves[0]), _memorization(halves[1])
    defined = np.isfinite([score for pair in pairs.values() for score in pair]).all(axis=0)
    if np.count_nonzero(defined) < 3:
        return {"reliability": np.nan}
    ranks = {name: [scipy.stats.rankdata(score[defined]) for score in pair] for name, pair in pairs.items()}
    agree = {name: pearson(*pair) for name, pair in ranks.items()}
    found = {"reliability": stepped_up(agree["mem"]) if "mem" in agree else np.nan}
    for name in sums.scores:
        found[f"{name} reliability"] = stepped_up(agree[name])
        if "mem" not in ranks:
            found[f"{name} corrected"] = corrected(values[f"{name} Spearman"], 1.0, stepped_up(agree[name]))
            continue
        disjoint = sum(pearson(ranks["mem"][half], ranks[name][1 - half]) for half in (0, 1)) / 2
        found[f"{name} disjoint_halves"] = disjoint
        found[f"{name} corrected"] = corrected(disjoint, agree["mem"], agree[name])
    return found


def _by_runs(sums: _Sums, given: np.ndarray | None) -> dict[str, float]:
    means = sums.means()
    mem = _memorization(means) if given is None else given
    return {name: _spearman(mem, means[name][0]) for name in sums.scores}


def _spearman(mem: np.ndarray, score: np.ndarray) -> float:
    defined = np.isfinite(mem) & np.isfinite(score)
    return spearman(mem[defined], score[defined]) if defined.sum() > 2 else float("nan")


def _bounds(statistic: str) -> Bounds:
    own = {"slope": UNBOUNDED, "intercept": UNBOUNDED, "a": NOT_NEGATIVE, "b": NOT_NEGATIVE, "difference": (-2.0, 2.0)}
    if statistic.endswith("corrected"):
        return UNBOUNDED
    return SHARE if statistic.endswith("auroc") else own.get(statistic, CORRELATION)
