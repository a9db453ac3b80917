"""Every rule says yes, no and "cannot say", each for its own reason."""

from __future__ import annotations

import math

import pytest

from libscores.statistics import Estimate
from libscores.verdicts import equivalence, falls, fits, rises, within_bound

NAN = math.nan


def around(low: float, high: float) -> Estimate:
    return Estimate((low + high) / 2, low, high)


@pytest.mark.parametrize(
    ("interval", "control", "margin", "verdict"),
    [
        ((0.2, 0.4), None, 0, "yes"),
        ((0.2, 0.4), (-0.1, 0.1), 0, "yes"),
        ((0.2, 0.4), (0.1, 0.3), 0, "cannot say"),  # the control finds as much
        ((0.2, 0.4), (NAN, NAN), 0, "cannot say"),
        ((-0.4, -0.2), None, 0, "no"),
        ((-0.1, 0.3), None, 0, "cannot say"),  # no power is no refutation
        ((-0.02, 0.06), None, 0, "cannot say"),
        ((-0.02, 0.06), None, 0.1, "no"),  # what there may be does not matter
        ((0.02, 0.06), None, 0.1, "no"),
        ((0.05, 0.2), None, 0.1, "cannot say"),
        ((0.15, 0.2), None, 0.1, "yes"),
        ((NAN, NAN), None, 0, "cannot say"),
    ],
)
def test_rises_and_falls(interval, control, margin: float, verdict: str) -> None:
    estimate, other = around(*interval), None if control is None else around(*control)
    assert rises(estimate, other, margin) == verdict
    mirrored = None if control is None else around(-control[1], -control[0])
    assert falls(around(-interval[1], -interval[0]), mirrored, margin) == verdict


@pytest.mark.parametrize(
    ("interval", "verdict"),
    [
        ((-0.04, 0.06), "yes"),
        ((-0.04, 0.11), "cannot say"),
        ((-0.5, 0.5), "cannot say"),
        ((0.15, 0.45), "no"),
        ((-0.45, -0.15), "no"),
        ((NAN, NAN), "cannot say"),
    ],
)
def test_equivalence_takes_the_whole_interval(interval, verdict: str) -> None:
    assert equivalence(around(*interval), 0.1) == verdict


@pytest.mark.parametrize(
    ("interval", "bound", "control", "verdict"),
    [
        ((0.1, 0.3), 0.4, None, "yes"),
        ((0.1, 0.3), 0.4, (-0.1, 0.1), "yes"),
        ((0.1, 0.3), 0.4, (0.05, 0.1), "cannot say"),  # memorization where there is none
        ((0.1, 0.3), 0.4, (NAN, NAN), "cannot say"),
        ((0.1, 0.5), 0.4, None, "cannot say"),  # the value is below, the interval is not
        ((0.5, 0.6), 0.4, None, "no"),
        ((0.5, 0.6), 0.96, None, "tests nothing"),
        ((NAN, NAN), 0.4, None, "cannot say"),
    ],
)
def test_within_bound_takes_the_upper_end(interval, bound: float, control, verdict: str) -> None:
    assert within_bound(around(*interval), bound, None if control is None else around(*control)) == verdict


@pytest.mark.parametrize(
    ("p", "misfit", "values", "parameters", "verdict"),
    [
        (0.4, 0.01, 8, 4, "yes"),
        (2e-12, 0.03, 8, 4, "no"),
        (2e-12, 0.03, 6, 4, "no"),
        (0.4, 0.01, 6, 4, "cannot say"),  # four parameters on six values
        (0.4, 0.3, 8, 4, "cannot say"),  # too few seeds to find a misfit
        (NAN, 0.01, 8, 4, "cannot say"),
        (0.4, NAN, 8, 4, "cannot say"),
    ],
)
def test_fits(p: float, misfit: float, values: int, parameters: int, verdict: str) -> None:
    assert fits(p, misfit, values, parameters) == verdict
