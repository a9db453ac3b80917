"""The check that a model does what was recorded with it: it refuses other orders and scales, never the right one.

Models are made up of log-odds of the true label: right is what is above 0, the probability is their logistic.
"""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats

from libscores.agreement import FEW, overlap
from libscoring.scoring import check_agreement
from libstore.errors import InputError


def log_odds(rng: np.random.Generator, n: int, errors: int, spread: float = 3.0) -> np.ndarray:
    """Log-odds of n examples, `errors` of them below 0."""
    values = np.abs(rng.normal(0, spread, n)) + rng.exponential(spread, n)
    values[rng.permutation(n)[:errors]] *= -1
    return values


def results(odds: np.ndarray) -> dict[str, np.ndarray]:
    return {"correctness": odds > 0, "prob": (1 / (1 + np.exp(-odds))).astype(np.float32)}


def recorded(odds: np.ndarray, *, prob: bool) -> dict[str, np.ndarray]:
    kept = results(odds)
    kept["correctness"] = kept["correctness"].astype(float)
    return kept if prob else {"correctness": kept["correctness"]}


@pytest.mark.parametrize("prob", [False, True])
@pytest.mark.parametrize("errors", [0, 9, 30, 600, 9000, 45_000, 59_991])
def test_a_shuffled_order_is_refused(errors: int, prob: bool, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(errors)
    odds = log_odds(rng, 60_000, errors)
    shuffled = rng.permutation(odds)
    if errors == 0 and not prob:
        check_agreement(results(odds), recorded(shuffled, prob=False), "model")
        assert "0 of 60000 examples wrong in aux_arrays.npz and 0 now: too few to tell" in capsys.readouterr().err
        return
    with pytest.raises(InputError, match="model: .*the order or the scale of the data"):
        check_agreement(results(odds), recorded(shuffled, prob=prob), "model")


@given(
    seed=st.integers(0, 2**32),
    n=st.integers(200, 20_000),
    accuracy=st.floats(0, 1),
    noise=st.sampled_from([0.0, 1e-4, 1e-3, 1e-2]),
    prob=st.booleans(),
)
@example(seed=0, n=20_000, accuracy=1.0, noise=1e-2, prob=True)
@settings(max_examples=150, deadline=None)
def test_the_right_order_is_never_refused(seed: int, n: int, accuracy: float, noise: float, prob: bool) -> None:
    """Log-odds differ by rounding as between libraries, devices and TF32, so that borderline examples change sides."""
    rng = np.random.default_rng(seed)
    odds = log_odds(rng, n, round(n * (1 - accuracy)))
    check_agreement(results(odds + rng.normal(0, noise, n)), recorded(odds, prob=prob), "model")


@given(seed=st.integers(0, 2**32), n=st.integers(2000, 20_000), errors=st.integers(20, 150), prob=st.booleans())
@settings(max_examples=100, deadline=None)
def test_a_random_order_is_always_refused(seed: int, n: int, errors: int, prob: bool) -> None:
    rng = np.random.default_rng(seed)
    odds = log_odds(rng, n, errors)
    with pytest.raises(InputError, match="the order or the scale"):
        check_agreement(results(odds), recorded(rng.permutation(odds), prob=prob), "model")


@pytest.mark.parametrize("flips", range(4))
@pytest.mark.parametrize("errors", range(12))
def test_a_few_borderline_examples_are_no_reason_to_refuse(errors: int, flips: int) -> None:
    rng = np.random.default_rng(flips)
    odds = log_odds(rng, 5000, errors)
    there = recorded(odds, prob=False)
    there["correctness"][rng.permutation(5000)[:flips]] = rng.integers(0, 2, flips)
    check_agreement(results(odds), there, "model")


@pytest.mark.parametrize("share", [0.3, 0.6])
def test_a_partly_shuffled_order_is_refused(share: float) -> None:
    rng = np.random.default_rng(1)
    odds = log_odds(rng, 60_000, 600)
    other, moved = odds.copy(), rng.permutation(60_000)[: int(60_000 * share)]
    other[moved] = odds[rng.permutation(moved)]
    with pytest.raises(InputError, match="the order or the scale"):
        check_agreement(results(odds), recorded(other, prob=False), "model")


def test_probabilities_tell_where_errors_do_not(capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(2)
    odds = log_odds(rng, 1000, 0)
    with pytest.raises(InputError, match=r"500 of 1000 examples low in prob in aux_arrays.npz, 500 now, but"):
        check_agreement(results(odds), recorded(np.roll(odds, 1), prob=True), "model")
    check_agreement(results(odds), recorded(odds, prob=True), "model")
    assert not capsys.readouterr().err
    check_agreement(results(odds), recorded(odds, prob=False), "model")
    assert "too few to tell" in capsys.readouterr().err
    check_agreement(results(odds), recorded(odds, prob=False), "model", complete=False)
    assert not capsys.readouterr().err


def test_saturated_probabilities_are_compared_where_they_differ() -> None:
    """Nearly all are 1 up to rounding, which is not reproduced."""
    rng = np.random.default_rng(3)
    odds = rng.normal(30, 3, 5000)
    odds[:40] = rng.normal(2, 1, 40)
    again = odds + rng.normal(0, 0.5, 5000) * (odds > 15)
    check_agreement(results(again), recorded(odds, prob=True), "model")
    with pytest.raises(InputError, match="low in prob"):
        check_agreement(results(again), recorded(rng.permutation(odds), prob=True), "model")


@pytest.mark.parametrize(("n", "allowed"), [(60_000, 600), (1000, 10)])
def test_agreement_must_be_99_per_cent(n: int, allowed: int) -> None:
    """Half of the examples are wrong, so that the errors themselves coincide well enough."""
    odds = log_odds(np.random.default_rng(4), n, n // 2)
    there = recorded(odds, prob=False)
    flip = slice(0, allowed)
    there["correctness"][flip] = 1 - there["correctness"][flip]
    check_agreement(results(odds), there, "model")
    flip = slice(0, allowed * 5 // 2)
    there["correctness"][flip] = results(odds)["correctness"][flip] == 0
    with pytest.raises(InputError, match=rf"model: agrees .* on 97\.50% of {n} examples, not on 99%"):
        check_agreement(results(odds), there, "model")


def test_a_wrong_scale_costs_accuracy_and_is_refused() -> None:
    rng = np.random.default_rng(5)
    odds = log_odds(rng, 2000, 20)
    with pytest.raises(InputError, match="not on 99%"):
        check_agreement(results(0.3 * odds - 1), recorded(odds, prob=False), "model")


@pytest.mark.parametrize("relation", [0.5, 1.0])
def test_shares_are_compared_with_probabilities(relation: float) -> None:
    """A record that is a mean over augmentations is only related to the probability of the plain image."""
    rng = np.random.default_rng(6)
    odds = log_odds(rng, 5000, 500)
    share = 1 / (1 + np.exp(-relation * odds - rng.normal(0, 2, 5000)))
    check_agreement(results(odds), {"correctness": share}, "model")
    with pytest.raises(InputError, match="low in correctness"):
        check_agreement(results(odds), {"correctness": rng.permutation(share)}, "model")


def test_examples_without_a_record_do_not_count(capsys: pytest.CaptureFixture[str]) -> None:
    odds = log_odds(np.random.default_rng(7), 3000, 300)
    there = recorded(odds, prob=False)
    there["correctness"][::2] = np.nan
    check_agreement(results(np.where(np.arange(3000) % 2, odds, -odds)), there, "model")
    assert not capsys.readouterr().err
    check_agreement(results(odds), {"correctness": np.full(3000, np.nan)}, "model")
    assert "no result recorded: too few to tell" in capsys.readouterr().err


@given(seed=st.integers(0, 2**32), n=st.integers(1, 7))
@settings(max_examples=40, deadline=None)
def test_random_orders_are_as_the_overlap_says(seed: int, n: int) -> None:
    """Against all orders, one by one."""
    rng = np.random.default_rng(seed)
    a, b = rng.random(n) < 0.5, rng.random(n) < 0.5
    found = overlap(a, b)
    orders = [b[list(order)] for order in permutations(range(n))]
    both = np.array([(a & order).sum() for order in orders])
    assert found.expected == pytest.approx(np.mean([(a != order).sum() for order in orders]))
    assert found.p_random == pytest.approx((both >= (a & b).sum()).mean())
    assert found.differ == (a != b).sum()
    assert found.p_rate(0.01) == pytest.approx(stats.binomtest(found.differ, n, 0.01, "greater").pvalue)


@given(seed=st.integers(0, 2**32), n=st.integers(1, 60_000), few=st.booleans())
@settings(max_examples=40, deadline=None)
def test_probabilities_of_overlaps_are_those_of_scipy(seed: int, n: int, few: bool) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.random((2, n)) < (0.01 if few else rng.random())
    found = overlap(a, b)
    both, mean = int((a & b).sum()), 0.1 * found.expected + FEW
    assert found.p_random == pytest.approx(stats.hypergeom.sf(both - 1, n, a.sum(), b.sum()), rel=1e-6, abs=1e-12)
    assert found.p_right(0.1) == pytest.approx(stats.poisson.sf(found.differ - 1, mean), rel=1e-9)
