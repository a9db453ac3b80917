"""Do two rankings of the same points agree: ranks, magnitudes, trajectories, predictions, and how surely."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
import scipy

from libscores.statistics import (
    CORRELATION,
    NOT_NEGATIVE,
    SHARE,
    UNBOUNDED,
    Bounds,
    Estimate,
    bootstrap_interval,
    bootstrap_weights,
    jackknife_interval,
    spearman,
    student,
    symmetric_interval,
)

RANK_METRICS = ("spearman", "kendall", "mean_rank_shift")
_RANK_BOUNDS = (CORRELATION, CORRELATION, NOT_NEGATIVE)


def cost_ranks(costs: np.ndarray) -> np.ndarray:
    """Return ranks from 0 for the cheapest; equal costs share their mean rank.

    Args:
        costs: Total cost of each point, shape (P,), not NaN.
    """
    if np.isnan(costs).any():
        raise ValueError("costs hold NaN")
    return scipy.stats.rankdata(costs) - 1


def rank_agreement(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Return Spearman's rho, Kendall's tau-b and the mean rank shift between two costs of the same points.

    The shift is mean |rank before - rank after| with both ranked among these points only, which is the adjusted one
    when some points were removed in between. Independent rankings give 0, 0 and (P^2 - 1) / (3 P).

    Args:
        before: Total cost of each point, shape (P,), P >= 2.
        after: The same points' cost in the other experiment, shape (P,).

    Returns:
        The three numbers, in the order of `RANK_METRICS`; rho and tau are NaN where all costs are equal.
    """
    if before.shape != after.shape or before.ndim != 1 or before.size < 2:
        raise ValueError(f"expected two costs of the same 2 or more points, got {before.shape} and {after.shape}")
    ranks = cost_ranks(before), cost_ranks(after)
    shift = float(np.abs(ranks[0] - ranks[1]).mean())
    if np.ptp(ranks[0]) == 0 or np.ptp(ranks[1]) == 0:
        return np.array([math.nan, math.nan, shift])
    return np.array([spearman(before, after), scipy.stats.kendalltau(*ranks).statistic, shift])


def cost_ratios(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Return after / before for each point, shape (P,); 0/0 counts as 1 and a cost that appears as infinity."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where((before == 0) & (after == 0), 1.0, after / before)


def same_stages(before: np.ndarray, after: np.ndarray) -> bool:
    """Tell whether two trainings were measured at the same stages, their lengths and checkpoints apart.

    A training without some points takes fewer steps, so its checkpoints are at slightly other shares of it.

    Args:
        before: Share of the training at each measurement, shape (S,), increasing.
        after: The same of the other training.

    Returns:
        Whether there are as many and none is off by half a stage or more.
    """
    if before.shape != after.shape:
        return False
    return bool(np.all(np.abs(before - after) < 0.5 * np.diff(before, append=np.inf, prepend=-np.inf).min()))


class TrajectorySimilarity(NamedTuple):
    """How alike each point's two trajectories are, each of shape (P,)."""

    cosine: np.ndarray
    """Cosine of the two trajectories; NaN where one is zero throughout."""
    correlation: np.ndarray
    """Pearson correlation over steps; NaN where one is constant."""
    relative_distance: np.ndarray
    """||before - after|| / ||before||; infinite or NaN where `before` is zero throughout."""


def trajectory_similarity(before: np.ndarray, after: np.ndarray) -> TrajectorySimilarity:
    """Compare two gradient-norm trajectories of every point.

    Args:
        before: Norm at each step, shape (S, P).
        after: The same points and steps in the other experiment, shape (S, P).
    """
    if before.shape != after.shape or before.ndim != 2:
        raise ValueError(f"expected two arrays (steps, points) of one shape, got {before.shape} and {after.shape}")

    def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        norms = np.sqrt(np.square(a).sum(axis=0) * np.square(b).sum(axis=0))
        return np.clip((a * b).sum(axis=0) / norms, -1.0, 1.0)

    with np.errstate(divide="ignore", invalid="ignore"):
        distance = np.linalg.norm(before - after, axis=0) / np.linalg.norm(before, axis=0)
        constant = (np.ptp(before, axis=0) == 0) | (np.ptp(after, axis=0) == 0)
        correlation = cosine(before - before.mean(axis=0), after - after.mean(axis=0))
        return TrajectorySimilarity(cosine(before, after), np.where(constant, math.nan, correlation), distance)


def agreement_of_outcomes(before: np.ndarray, after: np.ndarray) -> float:
    """Return how often a run of each experiment agree on a yes-or-no outcome, such as a correct prediction.

    Args:
        before: Share of the runs with the outcome, each in [0, 1], any shape.
        after: The same for the other experiment, same shape.

    Returns:
        Mean of b a + (1 - b)(1 - a); with one run on each side, the share of equal entries.
    """
    if before.shape != after.shape or before.size == 0:
        raise ValueError(f"expected two non-empty arrays of one shape, got {before.shape} and {after.shape}")
    return float((before * after + (1 - before) * (1 - after)).mean())


def over_runs(
    statistic: Callable[[np.ndarray, np.ndarray], Sequence[float]],
    before: np.ndarray,
    after: np.ndarray,
    paired: bool,
    n_resamples: int = 200,
    seed: int = 0,
    bounds: Sequence[Bounds] | None = None,
) -> list[Estimate]:
    """Return statistics of two experiments averaged over runs, with bootstrap intervals over the runs.

    The intervals say where as many new runs of each would put the number; they are NaN with a single run.

    Args:
        statistic: Takes the two averages, returns numbers.
        before: Any quantity of each run, shape (R, ...).
        after: The same quantity in the other experiment, shape (R', ...).
        paired: Run r of both shares its seed, so both are resampled alike; needs R = R'.
        n_resamples: Bootstrap resamples of the runs.
        seed: Seed of the resampling.
        bounds: What each number can be; its interval is cut there. None: anything.
    """
    if paired and len(before) != len(after):
        raise ValueError(f"paired runs must be equally many, got {len(before)} and {len(after)}")

    def value(weights_before: np.ndarray, weights_after: np.ndarray) -> np.ndarray:
        mean_before = np.tensordot(weights_before / len(before), before, axes=1)
        return np.asarray(statistic(mean_before, np.tensordot(weights_after / len(after), after, axes=1)))

    draws = bootstrap_weights(len(before), n_resamples, seed)
    other_draws = draws if paired else bootstrap_weights(len(after), n_resamples, seed + 1)
    resampled = np.array([value(*pair) for pair in zip(draws, other_draws, strict=True)])
    n_runs, values = min(len(before), len(after)), value(np.ones(len(before)), np.ones(len(after)))
    return [
        bootstrap_interval(float(number), column, n_runs, limits)
        for number, column, limits in zip(values, resampled.T, bounds or [UNBOUNDED] * len(values), strict=True)
    ]


def single_run_agreement(before: np.ndarray, after: np.ndarray, paired: bool) -> dict[str, Estimate]:
    """Return the mean `rank_agreement` of single runs: a run before beside a run after, and other seeds beside it.

    Paired, run k before is compared with run k after; else each run before with each after. The yardstick
    `..._other_seeds` compares each run before with each other run before, nothing removed. Intervals are a jackknife
    over runs; NaN where one run is left out of one.

    Args:
        before: Total cost of each run and point, shape (R, P).
        after: The same after, shape (R', P).
        paired: Run k of both shares its seeds; needs R = R'.
    """
    if paired and len(before) != len(after):
        raise ValueError(f"paired runs must be equally many, got {len(before)} and {len(after)}")
    agreement = np.array([[rank_agreement(a, b) for b in after] for a in before])
    if paired:
        own = np.diagonal(agreement).T
        columns = zip(RANK_METRICS, own.T, _RANK_BOUNDS, strict=True)
        table = {name: _mean_of_runs(column, bounds) for name, column, bounds in columns}
    else:
        table = dict(zip(RANK_METRICS, _mean_of_pairs(agreement), strict=True))
    if len(before) > 1:
        each = np.array([[rank_agreement(a, b) for b in before] for a in before])
        each[np.diag_indices(len(before))] = math.nan
        others = zip(RANK_METRICS, _mean_of_pairs(each, symmetric=True), strict=True)
        table |= {f"{name}_other_seeds": value for name, value in others}
    return table


def _mean_of_runs(values: np.ndarray, bounds: Bounds) -> Estimate:
    """Return a mean over independent runs, shape (R,), with Student's interval, cut at what is possible."""
    if values.size == 1:
        return Estimate(float(values[0]), math.nan, math.nan)
    left_out = (values.sum() - values) / (values.size - 1)
    return jackknife_interval(float(values.mean()), left_out, bounds)


def _mean_of_pairs(values: np.ndarray, symmetric: bool = False) -> list[Estimate]:
    """Return means of `rank_agreement` over pairs of runs, shape (R, R', 3), by a jackknife over the runs.

    A run left out takes all its pairs along. Two lists of runs add up their squared standard errors, with the degrees
    of freedom of the shorter; in one list beside itself (symmetric) the pairs of a run with itself do not count.
    """
    counts = ~np.eye(len(values), dtype=bool) if symmetric else np.ones(values.shape[:2], dtype=bool)
    mean = values[counts].mean(axis=0)
    squared, fewest = np.zeros(len(mean)), min(values.shape[:2]) - symmetric
    for side in range(1 if symmetric else 2) if fewest > 1 else ():
        runs = values.shape[side]
        left_out = []
        for run in range(runs):
            kept = counts.copy()
            kept[(slice(None),) * side + (run,)] = False
            if symmetric:
                kept[:, run] = False
            left_out.append(values[kept].mean(axis=0))
        squared += (runs - 1) / runs * np.square(np.array(left_out) - np.mean(left_out, axis=0)).sum(axis=0)
    degrees = fewest - (not symmetric)
    half = student(degrees) * np.sqrt(squared) if fewest > 1 else np.full(len(mean), math.nan)
    return [symmetric_interval(*numbers) for numbers in zip(mean, half, _RANK_BOUNDS, strict=True)]


def nothing_retrained(before: np.ndarray, after: np.ndarray, tolerance: float = 1e-5) -> float | None:
    """Return the factor between two measurements of one training, or None if there were two trainings.

    At a step they count as one if nearly all (95 %) of its norms that neither side clips differ by one factor, the
    same at all steps; steps with fewer than two such norms say nothing. Two trainings with the same seeds start with
    the same weights, so most of the steps must agree.

    Args:
        before: Clipped norm over the clipping norm of each step and point, shape (S, P).
        after: The same of the other measurement, shape (S, P).
        tolerance: Relative difference that rounding may cause.
    """
    free = (before > 0) & (after > 0) & (before < 1 - 1e-3) & (after < 1 - 1e-3)
    usable = free.sum(axis=1) >= 2
    if not usable.any():
        return None
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(free, after / before, math.nan)[usable]
    factor = float(np.nanmedian(ratio))
    same = (np.abs(ratio / factor - 1) < tolerance).sum(axis=1) >= 0.95 * free[usable].sum(axis=1)
    return factor if same.mean() > 0.5 and usable.sum() > 1 else None


def pair_interval(before: np.ndarray, after: np.ndarray, n_groups: int = 20, seed: int = 0) -> dict[str, Estimate]:
    """Return `rank_agreement` of two runs by metric, with jackknife intervals over groups of points.

    They hold the uncertainty of which points were measured, not that of the runs.

    Args:
        before: Total cost of each point in one run, shape (P,), P >= 4.
        after: The same in the other, shape (P,).
        n_groups: Groups of points left out in turn; at most P / 2 are made.
        seed: Seed of the groups.
    """
    n_groups = min(n_groups, before.size // 2)
    group = np.random.default_rng(seed).permutation(np.arange(before.size) % n_groups)
    values = rank_agreement(before, after)
    left_out = np.array([rank_agreement(before[group != g], after[group != g]) for g in range(n_groups)])
    return {
        name: jackknife_interval(float(value), column, bounds)
        for name, value, column, bounds in zip(RANK_METRICS, values, left_out.T, _RANK_BOUNDS, strict=True)
    }


def permuted_agreement(before: np.ndarray, after: np.ndarray, n_permutations: int = 200, seed: int = 0) -> np.ndarray:
    """Return the mean `rank_agreement` after shuffling which point is which, the negative control."""
    generator = np.random.default_rng(seed)
    return np.mean([rank_agreement(before, generator.permutation(after)) for _ in range(n_permutations)], axis=0)


def select_points(
    points: np.ndarray, costs: np.ndarray, count: int, which: Literal["cheapest", "dearest", "random"], seed: int = 0
) -> np.ndarray:
    """Choose the points of a removal experiment or of its controls.

    Args:
        points: Position of each point in the data set, shape (P,).
        costs: Their total costs, shape (P,); equal costs go by position.
        count: Number to choose, 1...P.
        which: The cheapest, the dearest, or random ones.
        seed: Seed of the random choice.

    Returns:
        The points, shape (count,): cheapest first, dearest first, or in rising position.
    """
    if not 1 <= count <= points.size:
        raise ValueError(f"cannot choose {count} of {points.size} points")
    if which == "random":
        return np.sort(np.random.default_rng(seed).choice(np.sort(points), count, replace=False))
    ranked = points[np.lexsort((points, costs))]
    return ranked[:count] if which == "cheapest" else ranked[::-1][:count]


def compare_rankings(before: np.ndarray, after: np.ndarray, removed: np.ndarray, seed: int = 0) -> dict[str, float]:
    """Return every number two rankings alone can give.

    Args:
        before: Total costs of the shared points before, shape (P,).
        after: Their total costs after, shape (P,).
        removed: Costs before of the points that are gone, shape (M,), M >= 0; they shift the unadjusted ranks.
        seed: Seed of the permuted control.
    """
    values = dict(zip(RANK_METRICS, rank_agreement(before, after).tolist(), strict=True))
    unadjusted = cost_ranks(np.concatenate([before, removed]))[: before.size]
    control = permuted_agreement(before, after, seed=seed)
    ratios = cost_ratios(before, after)
    return {
        **values,
        "mean_rank_shift_unadjusted": float(np.abs(unadjusted - cost_ranks(after)).mean()),
        **{f"cost_ratio_{percent}_percent": float(np.percentile(ratios, percent)) for percent in (5, 50, 95)},
        "total_cost_ratio": float(after.sum() / before.sum()) if before.sum() > 0 else math.nan,
        **{f"{name}_of_permuted_points": value for name, value in zip(RANK_METRICS, control.tolist(), strict=True)},
    }


class Runs(NamedTuple):
    """One experiment's runs, restricted to the points that are compared."""

    costs: np.ndarray
    """Total cost of each run and point, nats, shape (R, P)."""
    epsilons: np.ndarray
    """Realised epsilon of each run and point, shape (R, P)."""
    norms: np.ndarray
    """Gradient norm of each run, step and point, clipped or not, shape (R, S, P)."""
    correct: np.ndarray
    """Whether the point was classified correctly, 0 or 1, shape (R, S, P)."""
    accuracy: np.ndarray
    """Test accuracy at the end of each run, shape (R,)."""


def compare_runs(
    before: Runs, after: Runs, paired: bool, n_resamples: int = 200, seed: int = 0
) -> dict[str, Estimate | float]:
    """Return every metric of two experiments that needs their runs, with intervals over runs.

    `..._realised` and `..._epsilon` compare single runs by cost and by epsilon, `..._other_seeds` is what a change of
    seeds alone does to single runs (`single_run_agreement`). `..._of_means` and the rest average over runs first.

    Args:
        before: The first experiment.
        after: The second, on the same points and at the same stages.
        paired: See `over_runs`.
        n_resamples: Bootstrap resamples of the runs.
        seed: Seed of the resampling.
    """

    def costs(first: np.ndarray, second: np.ndarray) -> list[float]:
        return [*rank_agreement(first, second).tolist(), float(np.median(cost_ratios(first, second)))]

    def trajectories(first: np.ndarray, second: np.ndarray) -> list[float]:
        defined = (values[~np.isnan(values)] for values in trajectory_similarity(first, second))
        return [float(np.median(values)) if values.size else math.nan for values in defined]

    def outcomes(first: np.ndarray, second: np.ndarray) -> list[float]:
        return [agreement_of_outcomes(first, second)]

    def accuracies(first: np.ndarray, second: np.ndarray) -> list[float]:
        return [float(first), float(second), float(second - first)]

    ranks = dict(zip((f"{name}_of_means" for name in RANK_METRICS), _RANK_BOUNDS, strict=True))
    paths = {"cosine": CORRELATION, "correlation": CORRELATION, "distance": NOT_NEGATIVE}
    table: dict[str, Estimate | float] = {}
    for kind, quantity in (("realised", "costs"), ("epsilon", "epsilons")):
        agreement = single_run_agreement(getattr(before, quantity), getattr(after, quantity), paired)
        for name, value in agreement.items():
            other = "_other_seeds" if name.endswith("_other_seeds") else ""
            table[f"{name.removesuffix(other)}_{kind}{other}"] = value
    for bounds, statistic, quantity in (
        (ranks | {"median_cost_ratio_realised": NOT_NEGATIVE}, costs, "costs"),
        ({f"trajectory_{name}": limits for name, limits in paths.items()}, trajectories, "norms"),
        ({"correctness_agreement": SHARE}, outcomes, "correct"),
        # A change is a difference of two shares.
        ({"accuracy_before": SHARE, "accuracy_after": SHARE, "accuracy_change": CORRELATION}, accuracies, "accuracy"),
    ):
        pair = getattr(before, quantity), getattr(after, quantity)
        estimates = over_runs(statistic, *pair, paired, n_resamples, seed, list(bounds.values()))
        table |= zip(bounds, estimates, strict=True)
    return table


class Round(NamedTuple):
    """One round of a recursive removal."""

    points: np.ndarray
    """Points that are still there and were measured, shape (P,)."""
    costs: np.ndarray
    """Their cost in this round, shape (P,)."""


def saved_rounds(rounds: Sequence[Round], removed_per_round: int) -> list[dict[str, float]]:
    """Return what earlier rounds alone would have said of each later one: how many trainings are saved at what error.

    From round j the points removed up to round k are guessed at once: those already removed, and the cheapest of
    round j. Costs of round k are guessed from round j alone, and for j >= 1 by a straight line through j - 1 and j.

    Args:
        rounds: Round 0 with all points, round k without the k removed_per_round cheapest, each chosen in the round
            before.
        removed_per_round: Points removed before each round.

    Returns:
        A row per pair j < k: `from_round`, `round`, `saved` (trainings not needed, k - j - 1 to choose the points of
        round k), `overlap` (share of the points chosen after round j that are guessed right, 1 where k = j + 1),
        and for the guessed costs of round k `spearman`, `kendall`, `mean_rank_shift`, `median_error` (median
        |guess/cost - 1|) and `median_error_line` (by the line; NaN for j = 0).
    """
    rows = []
    for j, earlier in enumerate(rounds):
        order = earlier.points[np.lexsort((earlier.points, earlier.costs))]
        for k in range(j + 1, len(rounds)):
            later = rounds[k]
            gone = np.setdiff1d(earlier.points, later.points)
            guessed = order[: removed_per_round * (k - j)]
            here = _costs_of(earlier, later.points)
            line = np.full(here.shape, math.nan)
            if j:
                line = here + (k - j) * (here - _costs_of(rounds[j - 1], later.points))
            agreement = dict(zip(RANK_METRICS, rank_agreement(here, later.costs).tolist(), strict=True))
            rows.append(
                {
                    "from_round": float(j),
                    "round": float(k),
                    "saved": float(k - j - 1),
                    "overlap": float(np.isin(guessed, gone).mean()),
                    **agreement,
                    "median_error": float(np.median(np.abs(cost_ratios(later.costs, here) - 1))),
                    "median_error_line": float(np.median(np.abs(cost_ratios(later.costs, line) - 1))),
                }
            )
    return rows


def _costs_of(one: Round, points: np.ndarray) -> np.ndarray:
    order = np.argsort(one.points)
    return one.costs[order[np.searchsorted(one.points, points, sorter=order)]]
