"""One score per example from its curvature under many models.

Ravikumar et al., ICML 2024, arXiv 2402.18726, Section 5.1: curvature is averaged over the models whose training set
holds the example. The published notebooks take the maximum under the name of an average; both are here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from libscores.memorization import RunningMean


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
