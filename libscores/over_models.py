"""One score per example from its curvature under many models.

Ravikumar et al., ICML 2024, arXiv 2402.18726, Section 5.1: curvature is averaged over the models whose training set
holds the example. The published notebooks take the maximum under the name of an average; both are here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from libscores.memorization import RunningMean


def halves(n_runs: int) -> np.ndarray:
    """Return weights of all runs, of the even and of the odd ones, (3, T), for `RunningMean`."""
    odd = np.arange(n_runs) % 2.0
    return np.stack([np.ones(n_runs), 1 - odd, odd])


class InAndOut:
    """Means of a value over the runs that hold an example and over those that do not; of all, even and odd runs.

    Args:
        n_runs: Number T of runs.
        n_examples: N.
    """

    def __init__(self, n_runs: int, n_examples: int) -> None:
        self.inside, self.outside = (RunningMean(halves(n_runs), n_examples) for _ in range(2))

    def add(self, run: int, in_mask: np.ndarray, value: np.ndarray) -> None:
        """Add a run: whether it trained on each example, bool (N,), and the value, (N,), NaN where it has none."""
        known = ~np.isnan(value)
        self.inside.add(run, in_mask & known, value)
        self.outside.add(run, ~in_mask & known, value)

    @property
    def difference(self) -> np.ndarray:
        """The one mean minus the other, (3, N): from all runs, from the even and from the odd ones."""
        return self.inside.mean - self.outside.mean

    @property
    def standard_error(self) -> np.ndarray:
        """Standard error of the difference from all runs, (N,)."""
        return np.hypot(self.inside.standard_error[0], self.outside.standard_error[0])


@dataclass(frozen=True)
class OverModels:
    """Statistics of a value over the models that hold each of N examples; NaN where none does.

    Attributes:
        mean: Mean, (N,).
        standard_error: Its standard error; NaN for fewer than two models, (N,).
        maximum: Maximum, (N,).
        count: Number of models that hold the example, (N,).
        n_models: Number of models.
    """

    mean: np.ndarray
    standard_error: np.ndarray
    maximum: np.ndarray
    count: np.ndarray
    n_models: int


def over_models(models: Iterable[tuple[np.ndarray, np.ndarray]], n_examples: int) -> OverModels:
    """Average a value over the models that hold an example, and take its maximum.

    Models are read one at a time: memory is a few vectors of length N, whatever their number.

    Args:
        models: For every model, whether it trained on each example, bool (N,), and the value, (N,).
        n_examples: N.

    Raises:
        ValueError: There is no model, or an array has another length.
    """
    average = RunningMean(np.ones((1, 1)), n_examples)
    maximum = np.full(n_examples, np.nan)
    n_models = 0
    for mask, value in models:
        if mask.shape != (n_examples,) or value.shape != (n_examples,):
            raise ValueError(f"a model has shapes {mask.shape} and {value.shape}, expected ({n_examples},)")
        average.add(0, mask, value)
        np.fmax(maximum, value, out=maximum, where=mask)
        n_models += 1
    if not n_models:
        raise ValueError("there is no model to average over")
    return OverModels(
        mean=average.mean[0],
        standard_error=average.standard_error[0],
        maximum=maximum,
        count=average.count[0].astype(np.int64),
        n_models=n_models,
    )
