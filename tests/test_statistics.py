"""Intervals of medians against binomial probabilities and simulated coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest

from libscores.statistics import median_difference, median_interval


@pytest.mark.parametrize("n", [6, 25, 1000])
def test_median_interval_is_between_order_statistics_with_exact_coverage(n: int) -> None:
    values = np.random.default_rng(n).normal(size=n)
    found = median_interval(values)
    ordered = np.sort(values)
    low, high = int(np.searchsorted(ordered, found.low)), int(np.searchsorted(ordered, found.high))
    assert ordered[low] == found.low and ordered[high] == found.high and found.value == np.median(values)
    # The median lies between them unless at most `low`, or more than `high`, values are below it.
    inside = sum(math.comb(n, k) for k in range(low + 1, high + 1)) / 2**n
    narrower = sum(math.comb(n, k) for k in range(low + 2, high)) / 2**n
    assert inside >= 0.95 > narrower


def test_median_interval_of_too_few_values_is_undefined() -> None:
    found = median_interval(np.arange(5.0))
    assert found.value == 2 and math.isnan(found.low) and math.isnan(found.high)


def test_median_difference_covers_the_true_one() -> None:
    rng, covered = np.random.default_rng(0), 0
    for trial in range(200):
        found = median_difference(rng.exponential(size=60), rng.exponential(2, size=40), trial)
        covered += found.low <= math.log(2) - 2 * math.log(2) <= found.high
    assert covered >= 180  # 95 % of 200, less five standard errors


def test_median_difference_of_a_sample_and_itself_is_zero() -> None:
    values = np.random.default_rng(1).normal(size=30)
    found = median_difference(values, values)
    assert found.value == 0 and found.low < 0 < found.high
