"""Approximations of cost curves from fewer checkpoints."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.interpolate import CubicHermiteSpline

from libscores import cost_curves
from libscores.renyi import interpolation_weights

STEPS = 100 * np.round(np.arange(41) * 93 / 40)
KEPT = np.arange(0, 41, 3)


def curves(runs: int = 4, points: int = 30, seed: int = 0) -> np.ndarray:
    """Return smooth costs with noise, falling at different rates, shape (runs, 41, points)."""
    generator = np.random.default_rng(seed)
    rate = generator.uniform(0.5, 4, points)
    smooth = np.exp(generator.normal(-3, 1, points) - rate * STEPS[:, None] / STEPS[-1])
    return smooth * np.exp(0.1 * generator.normal(size=(runs, 41, points)))


def test_linear_is_numpy_interpolation_per_point():
    curve = curves()[0]
    found = cost_curves.linear(STEPS, curve[KEPT], KEPT)
    for point in range(curve.shape[1]):
        expected = np.interp(STEPS, STEPS[KEPT], curve[KEPT, point])
        np.testing.assert_allclose(found[:, point], expected, rtol=1e-12)
    np.testing.assert_array_equal(found[40], curve[39])


def test_offset_averages_the_three_starts():
    one = curves(1)
    parts = [cost_curves.linear(STEPS, one[0][start::3], np.arange(start, 41, 3)) for start in range(3)]
    np.testing.assert_allclose(cost_curves.offset(STEPS, one), np.mean(parts, axis=0), rtol=1e-12)


def test_offset_reads_a_third_of_every_run():
    several = curves(3)
    blanked = several.copy()
    for run in range(3):
        blanked[run, np.arange(41) % 3 != run] = np.nan
    np.testing.assert_array_equal(cost_curves.offset(STEPS, blanked), cost_curves.offset(STEPS, several))


def test_pchip_follows_the_harmonic_mean_slopes():
    """Fritsch and Butland: inner slopes are weighted harmonic means of the neighbouring secants, 0 at a turn."""
    curve = curves()[0][:, :3]
    found = cost_curves.pchip(STEPS, curve[KEPT], KEPT)
    x, gap = STEPS[KEPT], np.diff(STEPS[KEPT])
    for point in range(3):
        y = curve[KEPT, point]
        secant = np.diff(y) / gap
        slope = np.zeros_like(y)
        left, right = 2 * gap[1:] + gap[:-1], gap[1:] + 2 * gap[:-1]
        same = secant[:-1] * secant[1:] > 0
        slope[1:-1][same] = ((left + right) / (left / secant[:-1] + right / secant[1:]))[same]
        inner = slice(np.searchsorted(STEPS, x[1]), np.searchsorted(STEPS, x[-2]) + 1)
        expected = CubicHermiteSpline(x, y, slope)(STEPS[inner])
        np.testing.assert_allclose(found[inner, point], expected, rtol=1e-10)


@pytest.mark.parametrize("method", [cost_curves.linear, cost_curves.pchip])
def test_interpolation_passes_through_the_measured_and_stays_between(method):
    curve = curves()[0]
    found = method(STEPS, curve[KEPT], KEPT)
    np.testing.assert_allclose(found[KEPT], curve[KEPT], rtol=1e-12)
    for left, right in zip(KEPT[:-1], KEPT[1:], strict=True):
        low, high = np.minimum(curve[left], curve[right]), np.maximum(curve[left], curve[right])
        assert np.all((found[left : right + 1] >= low * (1 - 1e-12)) & (found[left : right + 1] <= high * (1 + 1e-12)))


def test_neural_network_fits_and_repeats_itself():
    curve = curves()[0]
    curve[:, 7] = 0.25
    found = cost_curves.neural_network(STEPS, curve[KEPT], KEPT, seed=3)
    np.testing.assert_array_equal(found, cost_curves.neural_network(STEPS, curve[KEPT], KEPT, seed=3))
    assert np.any(found != cost_curves.neural_network(STEPS, curve[KEPT], KEPT, seed=4))
    residual = np.square(found[KEPT] - curve[KEPT]).sum() / np.square(curve[KEPT] - curve[KEPT].mean(axis=0)).sum()
    assert residual < 0.02
    np.testing.assert_array_equal(found[:, 7], 0.25)
    assert found.min() >= 0


def test_evaluation_counts_what_it_says():
    every = curves()
    weights = interpolation_weights(STEPS, 9375)
    result = cost_curves.evaluate(STEPS, every, weights)
    assert tuple(result) == cost_curves.METHODS
    truth = every.mean(axis=0)
    unused = np.arange(41) % 3 != 0
    for predicted, errors in result.values():
        assert errors.saved == pytest.approx(27 / 41)
        error = np.abs(predicted - truth)[unused].sum() / truth[unused].sum()
        assert errors.unused_error == pytest.approx(error, rel=1e-12)
        interval, few = (cost_curves.unused_error_interval(predicted[:, :n], truth[:, :n]) for n in (30, 4))
        assert interval.value == pytest.approx(error, rel=1e-12) and interval.low < error < interval.high
        assert few.high - few.low > interval.high - interval.low
        totals = weights @ predicted, weights @ truth
        assert errors.total_error == pytest.approx(np.median(np.abs(totals[0] - totals[1]) / totals[1]), rel=1e-12)
        assert errors.total_bias == pytest.approx(totals[0].sum() / totals[1].sum() - 1, rel=1e-9)
        assert 0.99 < errors.spearman <= 1
        assert errors.total_error < 0.05
    alone = cost_curves.evaluate(STEPS, every[:1], weights)
    assert alone["offset"][1].saved == 0
    assert alone["linear"][1].saved > 0


def test_exact_where_the_curve_is_a_line():
    line = (np.array([2.0, 5.0]) - np.array([1e-4, 2e-4]) * STEPS[:, None])[None]
    result = cost_curves.evaluate(STEPS, np.repeat(line, 3, axis=0), np.ones(41))
    for method in ("linear", "pchip"):
        np.testing.assert_allclose(result[method][0][:40], line[0][:40], rtol=1e-12)


def test_arguments_are_checked():
    curve = curves()[0]
    with pytest.raises(ValueError, match="increasing"):
        cost_curves.linear(STEPS[::-1], curve[KEPT], KEPT)
    with pytest.raises(ValueError, match="increasing"):
        cost_curves.pchip(STEPS, curve[KEPT][1:], KEPT)
    with pytest.raises(ValueError, match="at least 7 checkpoints"):
        cost_curves.evaluate(STEPS[:6], curves()[:, :6], np.ones(6))
