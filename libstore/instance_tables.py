"""The tables of the per-instance accounting: which columns, made of what; --without's direction beside the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np

from libscores import renyi
from libscores.few_runs import growth_with_runs
from libscores.realised_pld import LEAST_DELTA, realised_pld_epsilon
from libstore.errors import InputError
from libstore.sensitivity_results import DISTANCE_UNITS, LARGEST, STEP_COST, SensitivityResults
from libstore.settings import Settings, setting

Columns = dict[str, np.ndarray]
"""A table: columns of equal length, by name."""

_REVERSE = ", without || with"


@dataclass(frozen=True)
class AccountSettings(Settings):
    """How gradient norms become costs."""

    alpha: float = setting(8.0, "Rényi order", at_least=2)
    delta: float = setting(1e-5, "delta of the epsilon columns", above=0, below=1)
    convention: str = setting("derived", "how steps are composed", choices=("derived", "published"))
    distance_unit: str = setting(
        "batch_mean", "unit of `distance (sum)`: norm / batch size, as it is saved, or the norm, as one published "
        "reader has it", choices=DISTANCE_UNITS,
    )  # fmt: skip
    fractional_orders: str = setting(
        "interpolated", "divergence at the fractional orders the derived composition meets",
        choices=("interpolated", "rounded_up"),
    )  # fmt: skip
    measured_only: bool = setting(False, "total over measured steps, not interpolated")
    loss_distributions: bool = setting(True, "realised epsilon by privacy loss distributions, too")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.delta < LEAST_DELTA and self.loss_distributions:
            raise InputError(f"--delta {self.delta:g}: below {LEAST_DELTA:g} add --no-loss_distributions")

    def weights(self, results: SensitivityResults) -> np.ndarray:
        """Return how many steps each measured one stands for in a total, shape (S,)."""
        if self.measured_only:
            return np.ones(results.steps.size)
        return renyi.interpolation_weights(results.steps, results.total_steps)


def account_tables(
    results: SensitivityResults, folds: Sequence[SensitivityResults], how: AccountSettings
) -> list[Columns]:
    """Return the tables of an accounting: costs of steps, totals of points, the largest against the number of runs.

    Args:
        results: Runs that train with their points.
        folds: Runs that train without theirs (`read_left_out`), which add the other direction to the totals.
        how: The settings.
    """
    found, spent = account_runs(results, how)
    points, steps = results.points, results.steps
    costs = {
        "point": np.repeat(points, steps.size),
        "step": np.tile(steps, points.size),
        STEP_COST: found.cost.T.reshape(-1),
    }
    every = np.ones(points.size)
    totals = {
        "point": points,
        "epsilon realised mean": found.epsilon_realised.mean(axis=0),
        "epsilon realised max": found.epsilon_realised.max(axis=0),
        "epsilon data-independent": found.epsilon_data_independent * every,
    }
    if how.loss_distributions:
        totals |= {
            "epsilon realised mean, loss distributions": spent.mean(axis=0),
            "epsilon realised max, loss distributions": spent.max(axis=0),
            "epsilon data-independent, loss distributions": data_independent_epsilon(results, how) * every,
        }
    derived = how.convention == "derived"
    totals |= {
        "realised sum mean": found.realised.mean(axis=0),
        "realised sum max": found.realised.max(axis=0),
        "data-independent": found.data_independent * every,
        LARGEST if derived else "published total": found.composed,
        "best p" if derived else "p": found.holder_exponent,
        f"epsilon {LARGEST}": found.epsilon_composed,
    }
    totals |= _other_direction(points, folds, how)
    if folds:
        for name in [name for name in totals if name.startswith("epsilon") and name + _REVERSE in totals]:
            totals[f"{name}, larger"] = np.fmax(totals[name], totals[name + _REVERSE])
    return [costs, totals, growth_table(results, how)]


def account_runs(
    results: SensitivityResults, how: AccountSettings, reverse: bool = False
) -> tuple[renyi.Account, np.ndarray]:
    """Return the account of some runs.

    Args:
        results: The runs.
        how: The settings.
        reverse: The runs train without the points; D(without || with).

    Returns:
        The Rényi account, and each run's realised epsilon, shape (R, P): by privacy loss distributions if they are
        asked for and give less, else by Rényi divergences.
    """
    mechanism = results.sample_rate, results.noise_multiplier
    found = renyi.account(
        results.sensitivity, results.steps, results.total_steps, *mechanism, how.alpha, how.delta,
        cast(renyi.Convention, "derived" if reverse else how.convention), not how.measured_only,
        cast(renyi.FractionalOrders, how.fractional_orders), reverse,
    )  # fmt: skip
    if not how.loss_distributions:
        return found, found.epsilon_realised
    spent = realised_pld_epsilon(results.sensitivity, *mechanism, how.delta, how.weights(results), reverse)
    return found, np.minimum(spent, found.epsilon_realised)


def data_independent_epsilon(results: SensitivityResults, how: AccountSettings) -> float:
    """Return epsilon, by privacy loss distributions, of a point whose gradient is clipped at every step."""
    mechanism = results.sample_rate, results.noise_multiplier, how.delta
    return realised_pld_epsilon(np.ones((1, results.steps.size, 1)), *mechanism, how.weights(results)).item()


def growth_table(results: SensitivityResults, how: AccountSettings) -> Columns:
    """Return the median largest of r runs, r = 1...R, with intervals over runs and points."""
    mechanism = results.sample_rate, results.noise_multiplier
    found = growth_with_runs(results.sensitivity, how.weights(results), *mechanism, how.alpha, how.delta)
    table: Columns = {"runs": np.arange(1, len(results.runs) + 1)}
    for name, estimates in (("share of data-independent", found.share), ("epsilon", found.epsilon)):
        for part, end in (("value", ""), ("low", ", low"), ("high", ", high")):
            table[name + end] = np.array([getattr(one, part) for one in estimates])
    return table


def _other_direction(points: np.ndarray, folds: Sequence[SensitivityResults], how: AccountSettings) -> Columns:
    """Return the columns of D(without || with); NaN for points that no fold left out."""
    sides = np.full(points.size, "one-sided: with || without")
    table: Columns = {"directions": sides}
    for fold in folds:
        found, spent = account_runs(fold, how, reverse=True)
        values = {"epsilon realised mean": found.epsilon_realised.mean(axis=0)}
        if how.loss_distributions:
            values["epsilon realised mean, loss distributions"] = spent.mean(axis=0)
        values |= {
            "realised sum mean": found.realised.mean(axis=0),
            LARGEST: found.composed,
            f"epsilon {LARGEST}": found.epsilon_composed,
        }
        here = np.searchsorted(points, fold.points)
        sides[here] = "both"
        for name, value in values.items():
            table.setdefault(name + _REVERSE, np.full(points.size, np.nan))[here] = value
    return table
