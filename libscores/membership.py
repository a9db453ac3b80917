"""How well membership of training examples can be told from an ensemble: LiRA, RMIA, and attacks of any score.

Every run is attacked in turn with all others as reference models, of which some hold an example and some do not. An
attack gives each run t and example i a number s_t(i), higher for members. Everything streams over the runs: memory is a
few vectors of length N.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from libscores.memorization import RunningMean
from libscores.over_models import InAndOut, halves
from libscores.statistics import SHARE, Estimate, jackknife_interval

Masked = tuple[np.ndarray, np.ndarray]
"""Of one run: whether it trained on each example, bool (N,), and a value of each, (N,)."""
FALSE_POSITIVES = (0.001, 0.01)
_GROUPS = 20
_BITS = 16


@dataclass
class _Gaussians:
    """Count, mean and sum of squared deviations of a group's values, each (N,)."""

    count: np.ndarray
    mean: np.ndarray
    squares: np.ndarray

    @staticmethod
    def of(group: RunningMean) -> _Gaussians:
        count = group.count[0]
        squares = group.standard_error[0] ** 2 * count * (count - 1)
        return _Gaussians(count, np.nan_to_num(group.mean[0]), np.nan_to_num(squares))

    def without(self, value: np.ndarray, drop: np.ndarray) -> _Gaussians:
        """Take a value out where `drop` says so; what is left of nothing is NaN."""
        count = self.count - drop
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = np.where(drop, (self.count * self.mean - value) / count, self.mean)
            squares = np.where(drop, self.squares - (value - self.mean) * (value - mean), self.squares)
        return _Gaussians(count, np.where(count > 0, mean, np.nan), np.maximum(squares, 0.0))

    def log_density(self, x: np.ndarray, shared: bool) -> np.ndarray:
        """Return ln N(x; mean, variance) up to a constant; NaN where a group of its own is too small."""
        free = np.maximum(self.count - 1, 0)
        with np.errstate(invalid="ignore", divide="ignore"):
            if shared:
                variance = np.nansum(np.where(free > 0, self.squares, 0.0)) / free.sum()
            else:
                variance = np.where(free > 0, self.squares / free, np.nan)
            variance = np.maximum(variance, 1e-12)
            return -0.5 * (np.log(variance) + (x - self.mean) ** 2 / variance)


def lira(runs: Callable[[], Iterable[Masked]], n_examples: int, *, shared: bool = False) -> Iterator[Masked]:
    """Yield LiRA's log-likelihood ratio of every run (Carlini et al. 2022, arXiv 2112.03570, algorithm 1, online).

    Normal distributions are fitted to the true label's log-odds over the other runs that hold the example and over
    those that do not; the number is the difference of their log-densities at the attacked run's log-odds. Undefined
    (NaN) where fewer than two other runs hold the example, or do not; with `shared`, fewer than one. An attack that
    finds nothing falls a little below an area of 1/2 with few runs, as the run's own group lacks one.

    Args:
        runs: Called to read all runs again: membership and log-odds taken from the logits.
        n_examples: N.
        shared: One variance for all examples (each for holding and not holding), better with few runs.

    Yields:
        Membership and log-likelihood ratio of each run.
    """
    groups = tuple(RunningMean(np.ones((1, 1)), n_examples) for _ in range(2))
    for mask, value in runs():
        known = ~np.isnan(value)
        groups[0].add(0, mask & known, value)
        groups[1].add(0, ~mask & known, value)
    fitted = [_Gaussians.of(group) for group in groups]
    for mask, value in runs():
        known = ~np.isnan(value)
        inside = fitted[0].without(value, mask & known)
        outside = fitted[1].without(value, ~mask & known)
        yield mask, inside.log_density(value, shared) - outside.log_density(value, shared)


def rmia(
    runs: Callable[[], Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]]],
    n_examples: int,
    n_population: int,
    gamma: float = 1.0,
) -> Iterator[Masked]:
    """Yield RMIA's score of every run, as log-odds (Zarifzadeh et al. 2024, arXiv 2312.03262).

    With ratio(x) = p_t(x) / p(x), p_t the true label's probability under the attacked run and p(x) its mean over the
    other runs, half from those that hold x and half from those that do not, the score is the share of a population z
    with ratio(x) >= gamma ratio(z). It is given as ln((k + 1/2) / (M - k + 1/2)), k of M, which ranks alike.

    Args:
        runs: Called to read all runs again: membership, log-odds (N,), and log-odds of the population, (M,), which no
            run trains on, such as the test split.
        n_examples: N.
        n_population: M.
        gamma: How much larger the ratio has to be.

    Yields:
        Membership and score of each run; NaN where no other run holds the example, or all others do.
    """
    groups = tuple(RunningMean(np.ones((1, 1)), n_examples) for _ in range(2))
    population, n_runs = np.zeros(n_population), 0
    for mask, value, others in runs():
        known = ~np.isnan(value)
        groups[0].add(0, mask & known, expit(value))
        groups[1].add(0, ~mask & known, expit(value))
        population += expit(others.astype(np.float64))
        n_runs += 1
    for mask, value, others in runs():
        value, others = value.astype(np.float64), others.astype(np.float64)
        p, known = expit(value), ~np.isnan(value)
        reference = np.zeros(n_examples)
        for group, drop in zip(groups, (mask & known, ~mask & known), strict=True):
            count = group.count[0] - drop
            total = group.count[0] * np.nan_to_num(group.mean[0]) - np.where(drop, p, 0.0)
            with np.errstate(invalid="ignore", divide="ignore"):
                reference += 0.5 * np.where(count > 0, np.maximum(total, 0.0) / count, np.nan)
        z = _log_ratio(others, (population - expit(others)) / max(n_runs - 1, 1))
        x = _log_ratio(value, reference)
        k = np.searchsorted(np.sort(z), x - np.log(gamma), side="right").astype(np.float64)
        yield mask, np.where(np.isnan(x), np.nan, np.log((k + 0.5) / (n_population - k + 0.5)))


def _log_ratio(log_odds: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Return ln(p / reference) of the probability p with these log-odds."""
    return -np.logaddexp(0.0, -log_odds) - np.log(np.maximum(reference, np.finfo(float).tiny))


@dataclass(frozen=True)
class Exposure:
    """What an attack finds.

    Attributes:
        advantage: Of each example, mean of the attack's answer over the runs that hold it minus that over the others,
            (N,): memorization with the answer in place of correctness.
        standard_error: Of that.
        of_halves: The same from the even and from the odd runs, (2, N).
        found: Share of the runs that hold an example in which it is found at 1 % false positives over all, (N,).
        found_error: Standard error of that.
        found_halves: The same from the even and from the odd runs, (2, N).
        false_positives: The curve over all examples and runs: its rates of false positives, increasing from 0 to 1.
        true_positives: Its rates of true positives.
        area: Under the curve, with an interval over the attacked runs.
        true_at: Rate of true positives at each of `FALSE_POSITIVES`, the largest without more false ones.
    """

    advantage: np.ndarray
    standard_error: np.ndarray
    of_halves: np.ndarray
    found: np.ndarray
    found_error: np.ndarray
    found_halves: np.ndarray
    false_positives: np.ndarray
    true_positives: np.ndarray
    area: Estimate
    true_at: dict[float, Estimate]


def exposure(
    scores: Callable[[], Iterable[Masked]],
    n_runs: int,
    n_examples: int,
    answer: Callable[[np.ndarray], np.ndarray] = expit,
) -> Exposure:
    """Say how exposed every example is to an attack, and how good the attack is over all.

    The curve's thresholds are kept to one part in 128 (16 bits of a float32), so that it never has to hold all scores.
    Intervals leave out groups of attacked runs; the references stay.

    Args:
        scores: Called to attack all runs again: membership and score of each example, NaN where undefined.
        n_runs: Number T of runs.
        n_examples: N.
        answer: Turns scores to answers in [0, 1]; by default, for log-likelihood ratios, the probability of membership
            at even odds.

    Raises:
        ValueError: No run both holds an example with a score and lacks one.
    """
    n_groups = min(_GROUPS, n_runs)
    counts = np.zeros((n_groups, 2, 1 << _BITS), dtype=np.int64)
    answers, detected = InAndOut(n_runs, n_examples), RunningMean(halves(n_runs), n_examples)
    for run, (mask, score) in enumerate(scores()):
        known = ~np.isnan(score)
        for member in (0, 1):
            chosen = known & (mask == member)
            counts[run % n_groups, member] += np.bincount(_key(score[chosen]), minlength=1 << _BITS)
        answers.add(run, mask, np.where(known, answer(score), np.nan))
    whole = counts.sum(axis=0)
    if not whole.sum(axis=1).all():
        raise ValueError("no scores of both members and others")
    false, true = curve(whole)
    left_out = [curve(whole - part) for part in counts]
    limit = _limit(whole, FALSE_POSITIVES[-1])
    for run, (mask, score) in enumerate(scores()):
        known = ~np.isnan(score)
        found = np.zeros(n_examples)
        found[known] = _key(score[known]) >= limit
        detected.add(run, mask & known, found)

    def interval(value: Callable[[np.ndarray, np.ndarray], float]) -> Estimate:
        if n_groups < 2:
            return Estimate(value(false, true), float("nan"), float("nan"))
        return jackknife_interval(value(false, true), np.array([value(*one) for one in left_out]), SHARE)

    return Exposure(
        advantage=answers.difference[0],
        standard_error=answers.standard_error,
        of_halves=answers.difference[1:],
        found=detected.mean[0],
        found_error=detected.standard_error[0],
        found_halves=detected.mean[1:],
        false_positives=false,
        true_positives=true,
        area=interval(lambda f, t: float(np.trapezoid(t, f))),
        true_at={rate: interval(lambda f, t, rate=rate: true_at(f, t, rate)) for rate in FALSE_POSITIVES},  # type: ignore[misc]
    )


def curve(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the rates of false and true positives at every threshold, from 0 to 1.

    Args:
        counts: Numbers of non-members (row 0) and members (row 1) in bins of increasing scores, (2, B).
    """
    used = counts.any(axis=0)
    above = np.cumsum(counts[:, used][:, ::-1], axis=1)
    rates = np.concatenate([np.zeros((2, 1)), above / np.maximum(above[:, -1:], 1)], axis=1)
    return rates[0], rates[1]


def true_at(false_positives: np.ndarray, true_positives: np.ndarray, rate: float) -> float:
    """Return the largest rate of true positives with a rate of false ones of at most `rate`."""
    return float(true_positives[np.searchsorted(false_positives, rate, side="right") - 1])


def _limit(counts: np.ndarray, rate: float) -> int:
    """Return the least bin from which on the rate of false positives is at most `rate`."""
    above = np.cumsum(counts[0][::-1])[::-1]
    return int(np.searchsorted(-above, -rate * above[0], side="left"))


def _key(scores: np.ndarray) -> np.ndarray:
    """Return the first 16 bits of scores as float32, as whole numbers from 0 that rise with them."""
    bits = (scores.astype(np.float32) + np.float32(0)).view(np.uint32)
    ordered = np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))
    return (ordered >> (32 - _BITS)).astype(np.int64)
