"""What may be said of a claim: yes, no, or that the data cannot say. Every verdict of the repository is decided here.

A verdict rests on a 95 % interval, and where there is one on the interval of a control: the same statistic on data that
have lost what the claim is about, which comes out otherwise only if something is wrong. What cannot come out otherwise
by construction, such as random pairs, is a `REFERENCE` and decides nothing. An interval that is not known says nothing,
and neither does one that is merely too wide to find a difference: that something does not matter takes a margin.
"""

from __future__ import annotations

import math
from typing import Literal

from libscores.statistics import Estimate

Verdict = Literal["yes", "no", "cannot say"]
CONTROL = "control"
REFERENCE = "reference"
"""Of a number that stands beside others for comparison and cannot fail by construction."""
NO_CLAIM = "no claim"
TESTS_NOTHING: Literal["tests nothing"] = "tests nothing"
"""Of a bound that next to nothing could break."""
LOOSE_BOUND = 0.95
SMALL_CORRELATION = 0.1
"""Margin below which a partial correlation counts as nothing: it is 1 % of the variance of the ranks."""
SMALL_MISFIT = 0.05
"""Margin below which a curve's misfit counts as nothing, as a share of the spread of the means it is fitted to."""
SIGNIFICANT = 0.05
VALUES_PER_PARAMETER = 2
"""Fewer values of epsilon for each parameter than that, and a curve bends to anything."""


def rises(estimate: Estimate, control: Estimate | None = None, margin: float = 0.0) -> Verdict:
    """Say whether a correlation, slope or difference is above a margin.

    Args:
        estimate: The statistic.
        control: The same statistic where there is nothing to find.
        margin: What does not matter yet, >= 0.

    Returns:
        "yes" if the whole interval is above the margin and above the control's, "no" if all of it is below the margin,
        else "cannot say".
    """
    if _unknown(estimate) or (control is not None and _unknown(control)):
        return "cannot say"
    if estimate.high < margin:
        return "no"
    return "yes" if estimate.low > max(margin, -math.inf if control is None else control.high) else "cannot say"


def falls(estimate: Estimate, control: Estimate | None = None, margin: float = 0.0) -> Verdict:
    """Say whether a correlation, slope or difference is below -margin; as `rises`, of the negative."""
    return rises(_negative(estimate), None if control is None else _negative(control), margin)


def equivalence(estimate: Estimate, margin: float) -> Verdict:
    """Say whether a difference is within a margin: two one-sided tests, by the 95 % interval (Schuirmann 1987).

    Args:
        estimate: The difference; a NaN interval says nothing.
        margin: The largest difference that does not matter, > 0.

    Returns:
        "yes" if the whole interval is within +-margin, "no" if all of it is outside, else "cannot say".
    """
    if -margin < estimate.low and estimate.high < margin:
        return "yes"
    return "no" if estimate.low > margin or estimate.high < -margin else "cannot say"


def within_bound(
    estimate: Estimate, bound: float, control: Estimate | None = None
) -> Verdict | Literal["tests nothing"]:
    """Say whether a quantity in [-1, 1] is at most a bound.

    Args:
        estimate: The quantity.
        bound: What it must not exceed.
        control: The same quantity where it is 0.

    Returns:
        "tests nothing" if the bound is above 0.95; "yes" if the whole interval is at most the bound, "no" if all of it
        is above, else "cannot say", also where the interval of the control is not around 0.
    """
    if bound > LOOSE_BOUND:
        return TESTS_NOTHING
    if _unknown(estimate) or (control is not None and not control.low <= 0 <= control.high):
        return "cannot say"
    if estimate.high <= bound:
        return "yes"
    return "no" if estimate.low > bound else "cannot say"


def fits(p_lack_of_fit: float, largest_misfit: float, n_values: int, n_parameters: int) -> Verdict:
    """Say whether means lie on a fitted curve.

    Args:
        p_lack_of_fit: P-value of the test that they do; NaN if there was none.
        largest_misfit: Upper end of the 95 % interval of what the curve misses, as a share of the means' spread.
        n_values: Number of means.
        n_parameters: Number of parameters fitted to them.

    Returns:
        "no" if the test rejects; "yes" if it does not, what the curve may miss is small, and there are at least two
        means for each parameter; else "cannot say".
    """
    if p_lack_of_fit < SIGNIFICANT:
        return "no"
    enough = n_values >= VALUES_PER_PARAMETER * n_parameters
    return "yes" if enough and p_lack_of_fit >= SIGNIFICANT and largest_misfit < SMALL_MISFIT else "cannot say"


def _unknown(estimate: Estimate) -> bool:
    return math.isnan(estimate.low) or math.isnan(estimate.high)


def _negative(estimate: Estimate) -> Estimate:
    return Estimate(-estimate.value, -estimate.high, -estimate.low)
