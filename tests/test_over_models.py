"""Averages and maxima over models, against the stacked arrays."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from libscores.over_models import over_models


@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(1, 20))
def test_equals_the_stacked_arrays(seed, n_models, n_examples):
    rng = np.random.default_rng(seed)
    masks, values = rng.random((n_models, n_examples)) < 0.6, rng.gamma(0.5, size=(n_models, n_examples))
    result = over_models(zip(masks, values.astype(np.float32), strict=True), n_examples)
    for i in range(n_examples):
        held = values[masks[:, i], i].astype(np.float32).astype(np.float64)
        assert result.count[i] == len(held)
        if len(held):
            np.testing.assert_allclose(result.mean[i], held.mean(), rtol=1e-12)
            assert result.maximum[i] == held.max()
        else:
            assert np.isnan(result.mean[i]) and np.isnan(result.maximum[i])
        if len(held) > 1:
            expected = held.std(ddof=1) / len(held) ** 0.5
            np.testing.assert_allclose(result.standard_error[i], expected, rtol=1e-9, atol=1e-12)
        else:
            assert np.isnan(result.standard_error[i])
    assert result.n_models == n_models


def test_a_models_value_on_an_example_it_does_not_hold_is_not_seen():
    value = np.array([1.0, np.nan, np.inf])
    result = over_models([(np.array([True, False, False]), value)] * 2, 3)
    np.testing.assert_array_equal(result.mean, [1, np.nan, np.nan])
    np.testing.assert_array_equal(result.maximum, [1, np.nan, np.nan])


def test_bad_input():
    with pytest.raises(ValueError, match="no model to average"):
        over_models([], 3)
    with pytest.raises(ValueError, match=r"shapes \(3,\) and \(2,\), expected \(3,\)"):
        over_models([(np.ones(3, bool), np.ones(2))], 3)
