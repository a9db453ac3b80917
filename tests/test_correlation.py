"""Partial correlations, reliability and correction for it, against regressions and scores whose noise is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from libscores.correlation import corrected, partial_spearman, reliability
from libscores.statistics import pearson


@given(seed=st.integers(0, 10**6), n=st.integers(5, 60), levels=st.integers(3, 50))
@settings(max_examples=50, deadline=None)
def test_partial_correlation_equals_the_formula_of_three_correlations(seed: int, n: int, levels: int) -> None:
    rng = np.random.default_rng(seed)
    z = rng.integers(0, levels, n).astype(float)
    x, y = z + 3 * rng.normal(size=n), rng.integers(0, levels, n) - z
    xy, xz, yz = (stats.spearmanr(a, b).statistic for a, b in ((x, y), (x, z), (y, z)))
    if np.isnan([xy, xz, yz]).any() or max(abs(xz), abs(yz)) > 0.999:
        return
    expected = (xy - xz * yz) / math.sqrt((1 - xz**2) * (1 - yz**2))
    assert partial_spearman(x, y, z) == pytest.approx(expected, abs=1e-9)
    assert partial_spearman(x, y, np.exp(z / levels)) == pytest.approx(expected, abs=1e-9)  # ranks only


def test_a_score_says_nothing_beyond_itself() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 200))
    assert math.isnan(partial_spearman(x, y, x)) and math.isnan(partial_spearman(x, y, np.exp(y)))
    assert partial_spearman(x, y, np.ones(200)) == pytest.approx(stats.spearmanr(x, y).statistic)


def test_what_two_scores_share_with_a_third_is_taken_away() -> None:
    rng = np.random.default_rng(1)
    common, own, *noise = rng.normal(size=(4, 20_000))
    x, y = common + 0.5 * noise[0], common + 0.5 * noise[1]
    assert abs(partial_spearman(x, y, common)) < 0.03 < 0.7 < stats.spearmanr(x, y).statistic
    assert partial_spearman(x + own, y + own, common) > 0.5


@pytest.mark.parametrize("measure", [pearson, None])
def test_reliability_and_correction_find_what_noise_hides(measure) -> None:
    """Normal scores of correlation 0.6; every half adds noise of variance 0.5, so all runs have reliability 0.8."""
    rng, n = np.random.default_rng(2), 40_000
    x, own = rng.normal(size=(2, n))
    y = 0.6 * x + 0.8 * own
    halves = {
        name: [score + math.sqrt(0.5) * rng.normal(size=n) for _ in range(2)] for name, score in (("x", x), ("y", y))
    }
    kind = () if measure is None else (measure,)
    found = {name: reliability(*half, *kind) for name, half in halves.items()}
    assert found["x"] == pytest.approx(0.8, abs=0.02) and found["y"] == pytest.approx(0.8, abs=0.02)
    correlate = pearson if measure else (lambda a, b: stats.spearmanr(a, b).statistic)
    observed = correlate(sum(halves["x"]), sum(halves["y"]))
    assert observed == pytest.approx(0.48, abs=0.03)
    assert corrected(observed, found["x"], found["y"]) == pytest.approx(0.6, abs=0.03)
    assert reliability(*halves["x"], pearson, times=1) == pytest.approx(1 / 1.5, abs=0.02)


def test_no_agreement_of_halves_is_nothing_to_correct_by() -> None:
    a, b = np.arange(10.0), np.arange(10.0)[::-1]
    assert math.isnan(reliability(a, b)) and math.isnan(corrected(0.3, math.nan, 1.0))
    assert math.isnan(corrected(0.3, -0.2, 1.0)) and math.isnan(corrected(0.3, 0.0, 1.0))
    assert reliability(a, a) == 1 and corrected(0.3, 1.0, 1.0) == 0.3
