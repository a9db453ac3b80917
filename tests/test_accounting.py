"""Privacy accounting against closed forms, quadrature and an independent accountant."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, assert_refused, run_script, write_config
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from opacus.accountants import PRVAccountant
from scipy.integrate import trapezoid
from scipy.optimize import brentq
from scipy.stats import norm

from libscores import accounting
from libscores.accounting import (
    ACCOUNTANTS,
    calibrate_noise_multiplier,
    pld_interval,
    spent_epsilon,
    total_variation,
)


def gaussian_epsilon(noise_multiplier: float, steps: int, delta: float) -> float:
    """Epsilon of composed Gaussian mechanisms without sampling (Balle, Wang 2018, arXiv 1805.06530, Theorem 8)."""
    mu = math.sqrt(steps) / noise_multiplier

    def excess(epsilon: float) -> float:
        log_tail = epsilon + norm.logcdf(-mu / 2 - epsilon / mu)
        return norm.cdf(mu / 2 - epsilon / mu) - math.exp(log_tail) - delta

    return brentq(excess, 0, 1e4)


def one_step_epsilon(noise_multiplier: float, sample_rate: float, delta: float) -> float:
    """Epsilon of one Poisson-sampled Gaussian step, from the definition by quadrature, the worse direction."""

    x = np.linspace(-12 * noise_multiplier, 1 + 12 * noise_multiplier, 400_001)
    alone = norm.pdf(x, 0, noise_multiplier)
    mixture = (1 - sample_rate) * alone + sample_rate * norm.pdf(x, 1, noise_multiplier)

    def excess(epsilon: float, p: np.ndarray, q: np.ndarray) -> float:
        return trapezoid(np.maximum(p - math.exp(epsilon) * q, 0), x) - delta

    pairs = [(p, q) for p, q in ((mixture, alone), (alone, mixture)) if excess(0, p, q) > 0]
    return max((brentq(excess, 0, 20, args=pair, xtol=1e-6) for pair in pairs), default=0.0)


@pytest.mark.parametrize(("noise", "steps"), [(1.0, 1), (4.0, 30), (0.7, 3)])
def test_without_sampling_pld_is_the_closed_form(noise: float, steps: int) -> None:
    want = gaussian_epsilon(noise, steps, 1e-5)
    got = spent_epsilon(noise, 1.0, steps, 1e-5)
    assert want - 1e-7 <= got <= want + 1e-3
    assert spent_epsilon(noise, 1.0, steps, 1e-5, "rdp") >= want


@pytest.mark.parametrize(("noise", "rate", "delta"), [(0.8, 0.3, 1e-4), (1.5, 0.05, 1e-5)])
def test_one_sampled_step_is_the_definition(noise: float, rate: float, delta: float) -> None:
    want = one_step_epsilon(noise, rate, delta)
    assert want - 1e-5 <= spent_epsilon(noise, rate, 1, delta) <= want + 1e-3
    assert spent_epsilon(noise, rate, 1, delta, "rdp") >= want


@pytest.mark.parametrize(("epsilon", "rate", "steps"), [(1, 0.032, 625), (5, 0.00512, 3906), (10, 0.1, 200)])
def test_calibrated_noise_spends_the_budget_by_an_independent_accountant(
    epsilon: float, rate: float, steps: int
) -> None:
    noise, spent = calibrate_noise_multiplier(epsilon, 1e-5, rate, steps)
    assert 0.999 * epsilon < spent <= epsilon
    assert spent == spent_epsilon(noise, rate, steps, 1e-5, interval=pld_interval(epsilon))
    other = PRVAccountant()
    for _ in range(steps):
        other.step(noise_multiplier=noise, sample_rate=rate)
    assert abs(other.get_epsilon(1e-5) - spent) < 0.02  # it adds its own error bound of 0.01


def check_least(epsilon: float, rate: float, steps: int, accountant: str) -> None:
    noise, spent = calibrate_noise_multiplier(epsilon, 1e-6, rate, steps, accountant)
    width = pld_interval(epsilon)
    assert spent <= epsilon and spent == spent_epsilon(noise, rate, steps, 1e-6, accountant, width)
    less = max(noise - 4e-5, noise / 2)
    assert spent_epsilon(less, rate, steps, 1e-6, accountant, width) > epsilon


@pytest.mark.parametrize(("epsilon", "rate", "steps"), [(0.5, 0.01, 40), (2, 1.0, 3), (60, 0.2, 50)])
def test_calibrated_noise_is_the_least(epsilon: float, rate: float, steps: int) -> None:
    check_least(epsilon, rate, steps, "pld")


@pytest.mark.parametrize("epsilon", [1, 10, 40])
def test_calibration_takes_few_fine_evaluations_and_ends_at_the_least(
    epsilon: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    widths: list[float] = []
    bound = accounting._pld_epsilon

    def counted(*arguments: float) -> float:
        widths.append(arguments[-1])
        return bound(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(accounting, "_pld_epsilon", counted)
    fine = pld_interval(epsilon)
    noise, spent = calibrate_noise_multiplier(epsilon, 1e-5, 64 / 1800, 562)
    assert widths.count(fine) <= 3 and len(widths) <= 12 and min(widths) == fine
    assert spent <= epsilon < spent_epsilon(round(noise - 1e-5, 5), 64 / 1800, 562, 1e-5, interval=fine)


@given(epsilon=st.floats(0.1, 1000), rate=st.floats(0.001, 1), steps=st.integers(1, 10**5))
@settings(max_examples=10, deadline=None, phases=[Phase.generate])
def test_calibrated_renyi_noise_is_the_least(epsilon: float, rate: float, steps: int) -> None:
    check_least(epsilon, rate, steps, "rdp")


@given(noise=st.floats(0.8, 5), rate=st.floats(0.01, 0.3), steps=st.integers(1, 200))
@settings(max_examples=10, deadline=None, phases=[Phase.generate])
def test_more_steps_and_less_noise_cost_more_and_renyi_is_looser(noise: float, rate: float, steps: int) -> None:
    width = 1e-3
    cost = spent_epsilon(noise, rate, steps, 1e-5, interval=width)
    assert spent_epsilon(noise, rate, steps + 1, 1e-5, interval=width) >= cost
    assert spent_epsilon(noise * 1.1, rate, steps, 1e-5, interval=width) <= cost
    assert spent_epsilon(noise, rate, steps, 1e-5, interval=2e-3) >= cost - 1e-9
    assert spent_epsilon(noise, rate, steps, 1e-5, "rdp") >= spent_epsilon(noise, rate, steps, 1e-5) - 1e-3


EXTREMES = [
    (8, 1e-5), (8, 1e-15), (8, 1e-300), (1e-6, 1e-5), (1e-3, 1e-5), (1e-300, 1e-5), (1e-6, 1e-15), (0.1, 1e-300),
    (1e6, 1e-5), (1e6, 1e-15),
]  # fmt: skip
CALIBRATE = """
import json, sys
from libscores.accounting import calibrate_noise_multiplier
for case in json.loads(sys.argv[1]):
    try:
        print(json.dumps(calibrate_noise_multiplier(*case)))
    except ValueError as error:
        print(json.dumps(str(error)))
"""


@pytest.mark.parametrize("accountant", ACCOUNTANTS)
def test_extreme_budgets_end_in_an_answer_or_a_reason(accountant: str) -> None:
    """Answers are checked by the accountant itself; the search that hung tried noise multipliers for ever."""
    cases = [(*case, *run, accountant) for case in EXTREMES for run in ((0.1, 10), (1.0, 1))]
    command = [sys.executable, "-c", CALIBRATE, json.dumps(cases)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert result.returncode == 0, result.stderr
    answers = [json.loads(line) for line in result.stdout.splitlines()]
    for (epsilon, delta, rate, steps, _), answer in zip(cases, answers, strict=True):
        if isinstance(answer, str):
            assert re.search("does not resolve|no noise multiplier|fails at noise multiplier", answer), answer
        else:
            noise, cost = answer
            assert 0 <= cost <= epsilon and noise >= 0.01
            assert cost == spent_epsilon(noise, rate, steps, delta, accountant, pld_interval(epsilon))
    assert isinstance(answers[0], list)


@pytest.mark.parametrize("epsilon", [1e-3, 0.05])
def test_small_epsilons_without_sampling_are_the_closed_form(epsilon: float) -> None:
    """No Renyi bound reaches them: its conversion adds ln(1/delta) over the order."""
    noise, _ = calibrate_noise_multiplier(epsilon, 1e-5, 1.0, 4)
    assert gaussian_epsilon(noise, 4, 1e-5) <= epsilon
    assert gaussian_epsilon(0.99 * noise, 4, 1e-5) > epsilon


def test_training_for_a_tiny_delta_is_refused_and_renyi_accounting_does_it(tmp_path: Path) -> None:
    study = ("--config", write_config(tmp_path), "--data_subset", 100, "--batch_size", 20)
    line = ("train_dp.py", *study, "--epsilon", 8, "--epochs", 1, "--delta", "1e-15")
    refused = run_script(*line, OMP_NUM_THREADS="1")
    assert_refused(refused, "--epsilon 8", "'pld'", "1e-15", "inf", "'rdp'")
    assert run_script(*line, "--accountant", "rdp").returncode == 0


def test_edges() -> None:
    for accountant in ACCOUNTANTS:
        assert spent_epsilon(1.0, 0.1, 0, 1e-5, accountant) == 0
    assert spent_epsilon(200.0, 0.001, 1, 1e-2) == 0
    noise, spent = calibrate_noise_multiplier(2, 1e-5, 0.05, 100, "prv")
    assert spent <= 2 and abs(spent_epsilon(noise, 0.05, 100, 1e-5) - 2) < 0.02


@pytest.mark.parametrize(
    ("arguments", "mention"),
    [
        ((0.0, 0.1, 5, 1e-5), "noise_multiplier must be positive, found 0.0"),
        ((1.0, 0.0, 5, 1e-5), "sample_rate must be above 0 and at most 1, found 0.0"),
        ((1.0, 1.5, 5, 1e-5), "found 1.5"),
        ((1.0, 0.1, -1, 1e-5), "steps must not be negative, found -1"),
        ((1.0, 0.1, 5, 0.0), "delta must be between 0 and 1, found 0.0"),
        ((1.0, 0.1, 5, 1e-5, "moments"), "'moments'"),
    ],
)
def test_arguments_out_of_range_are_named(arguments: tuple, mention: str) -> None:
    with pytest.raises(ValueError, match=mention):
        spent_epsilon(*arguments)


def test_impossible_budgets_are_named() -> None:
    with pytest.raises(ValueError, match="epsilon must be positive, found -1"):
        calibrate_noise_multiplier(-1, 1e-5, 0.1, 10)
    with pytest.raises(ValueError, match="steps must be at least 1"):
        calibrate_noise_multiplier(1, 1e-5, 0.1, 0)
    with pytest.raises(ValueError, match="no noise multiplier"):
        calibrate_noise_multiplier(1e-9, 1e-12, 1.0, 10**6)


@pytest.mark.parametrize(("noise", "rate", "steps"), [(2.0, 1.0, 1), (5.0, 1.0, 30), (0.7, 0.1, 1), (1.3, 0.6, 1)])
def test_total_variation_equals_the_closed_forms(noise: float, rate: float, steps: int) -> None:
    """Without sampling all steps are one Gaussian mechanism; one sampled step has the sampled share of its distance."""
    exact = rate * (2 * norm.cdf(math.sqrt(steps) / (2 * noise)) - 1)
    found = total_variation(noise, rate, steps)
    assert exact - 1e-9 <= found == pytest.approx(exact, rel=2e-3)


def test_total_variation_of_the_ends() -> None:
    assert total_variation(1.0, 0.1, 0) == 0 and total_variation(0.05, 1.0, 3) <= 1
    bounds = [total_variation(noise, 64 / 1360, 425) for noise in (3.76294, 0.81334)]
    assert bounds == pytest.approx([0.104, 0.573], abs=5e-4)  # epsilon 1 and 10 at delta 1e-5
