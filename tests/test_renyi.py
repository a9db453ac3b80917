"""Rényi accounting against high precision, dp-accounting, and integrals of the definition."""

from __future__ import annotations

import math

import dp_accounting
import mpmath
import numpy as np
import pytest
from dp_accounting.rdp import RdpAccountant
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats

from libscores import renyi

MNIST = {"sample_rate": 256 / 60000, "noise_multiplier": 0.57891845703125}

rates = st.floats(1e-6, 1.0)
noises = st.floats(0.1, 30.0)
whole_orders = st.integers(2, 256)
sensitivities = st.floats(0.0, 1.0)


def exact_divergence(s: float, q: float, sigma: float, order: int) -> mpmath.mpf:
    """Evaluate the binomial sum less 1, whose weights add up to 1, with 60 digits."""
    with mpmath.workdps(60):
        x, q = (mpmath.mpf(s) / mpmath.mpf(sigma)) ** 2 / 2, mpmath.mpf(q)
        excess = mpmath.fsum(
            math.comb(order, k) * (1 - q) ** (order - k) * q**k * mpmath.expm1(k * (k - 1) * x)
            for k in range(order + 1)
        )
        return mpmath.log1p(excess) / (order - 1)


def mixture(x: np.ndarray, means: np.ndarray, weights: np.ndarray, sigma: float) -> np.ndarray:
    """Return the log density of a Gaussian mixture in one dimension."""
    return special.logsumexp(stats.norm.logpdf(np.asarray(x)[..., None], means, sigma) + np.log(weights), axis=-1)


def integrated_divergence(log_p, log_q, order: float, low: float, high: float) -> float:
    """Integrate p^a q^(1-a) over a grid fine enough for smooth densities."""
    x = np.linspace(low, high, 40001)
    return float(special.logsumexp(order * log_p(x) - (order - 1) * log_q(x)) + math.log(x[1] - x[0])) / (order - 1)


@given(sensitivities, rates, noises, whole_orders)
@settings(max_examples=300, deadline=None)
def test_divergence_agrees_with_high_precision(s, q, sigma, order):
    expected = exact_divergence(s, q, sigma, order)
    found = float(renyi.step_divergence(s, q, sigma, order))
    assert found == pytest.approx(float(expected), rel=1e-9, abs=1e-300)


@pytest.mark.parametrize("noise_multiplier", [0.3, 0.57891845703125, 1.0, 4.0])
@pytest.mark.parametrize("sample_rate", [0.001, 256 / 60000, 0.3, 1.0])
def test_full_sensitivity_is_the_data_independent_cost_of_dp_accounting(sample_rate, noise_multiplier):
    orders = [2, 3, 8, 32, 255]
    event = dp_accounting.PoissonSampledDpEvent(sample_rate, dp_accounting.GaussianDpEvent(noise_multiplier))
    accountant = RdpAccountant(orders).compose(event, 1)
    found = renyi.step_divergence(1.0, sample_rate, noise_multiplier, orders)
    np.testing.assert_allclose(found, accountant._rdp, rtol=1e-9)


@pytest.mark.parametrize("s", [0.05, 0.4, 1.0])
@pytest.mark.parametrize(("q", "sigma"), [(0.01, 0.8), (0.2, 1.5), (1.0, 2.0)])
def test_divergence_is_the_integral_of_the_sampled_gaussian(s, q, sigma):
    for order in (2, 5, 8):
        expected = integrated_divergence(
            lambda x: mixture(x, np.array([0, s]), np.array([1 - q, q]) + 1e-300, sigma),
            lambda x: mixture(x, np.array([0.0]), np.array([1.0]), sigma),
            order, -15 * sigma, 15 * sigma + order * s,
        )  # fmt: skip
        assert float(renyi.step_divergence(s, q, sigma, order)) == pytest.approx(expected, rel=1e-7, abs=1e-11)


@given(st.integers(0, 10**6), st.sampled_from([2, 4, 8]))
@settings(max_examples=25, deadline=None)
def test_divergence_is_never_below_the_true_one_of_a_step_with_other_points(seed, order):
    """The other points shift the sum at random; with and without the point the step is a mixture over batches."""
    generator = np.random.default_rng(seed)
    q, sigma, s = generator.uniform(0.01, 0.9), generator.uniform(0.5, 3), generator.uniform(0, 1)
    sums = generator.normal(0, 1.5, 6)
    chance = generator.dirichlet(np.ones(6))
    true = integrated_divergence(
        lambda x: mixture(x, np.concatenate([sums, sums + s]), np.concatenate([(1 - q) * chance, q * chance]), sigma),
        lambda x: mixture(x, sums, chance, sigma),
        order, sums.min() - 15 * sigma, sums.max() + 15 * sigma + order * s,
    )  # fmt: skip
    assert float(renyi.step_divergence(s, q, sigma, order)) >= true * (1 - 1e-9) - 1e-13


@given(st.integers(0, 10**9), rates, noises, whole_orders)
@settings(max_examples=300, deadline=None)
def test_divergence_is_exactly_monotone_in_the_sensitivity(seed, q, sigma, order):
    """Neighbouring floats, neighbours of the rounding and both sides of the change to log space."""
    generator = np.random.default_rng(seed)
    change = math.sqrt(2 * renyi._EXPONENT_LIMIT / (order * (order - 1))) * sigma
    centers = np.array([generator.uniform(), 10 ** generator.uniform(-12, 0), min(change, 1.0)])
    spacing = generator.choice([1, 7, 64, 256, 1024])
    s = np.sort(np.clip(centers[:, None] * (1 + np.arange(-300, 300) * spacing * 2.0**-52), 0, 1), axis=None)
    assert np.all(np.diff(renyi.step_divergence(s, q, sigma, order)) >= 0)


@given(sensitivities, sensitivities, rates, rates, noises, noises, whole_orders, whole_orders)
@settings(max_examples=60, deadline=None)
def test_divergence_rises_with_sensitivity_rate_and_order_and_falls_with_noise(s, t, q, u, sigma, tau, a, b):
    low = renyi.step_divergence(min(s, t), min(q, u), max(sigma, tau), min(a, b))
    high = renyi.step_divergence(max(s, t), max(q, u), min(sigma, tau), max(a, b))
    assert low <= high * (1 + 1e-11)


def test_each_divergence_depends_on_its_own_arguments_alone():
    s = np.random.default_rng(0).uniform(0, 1, (3, 5000))
    orders = [8, 2, 24, 8]
    together = renyi.step_divergence(s, **MNIST, order=orders)
    assert together.shape == (4, 3, 5000)
    order = np.random.default_rng(1).permutation(5000)
    for row, a in enumerate(orders):
        np.testing.assert_array_equal(renyi.step_divergence(s[:, order], **MNIST, order=a), together[row][:, order])
        assert renyi.step_divergence(s[1, 4999], **MNIST, order=a) == together[row, 1, 4999]
    np.testing.assert_allclose(renyi.step_divergence(s.astype(np.float32), **MNIST, order=8), together[0], rtol=1e-4)


def test_divergence_edge_cases():
    assert renyi.step_divergence(0.0, **MNIST, order=8) == 0
    assert renyi.step_divergence(1.0, 0.0, 0.01, 64) == 0
    np.testing.assert_allclose(renyi.step_divergence(0.7, 1.0, 0.01, [2, 64]), np.array([1, 32]) * 0.49 / 0.0001)
    assert renyi.step_divergence(1.0, **MNIST, order=7.2) == renyi.step_divergence(1.0, **MNIST, order=8)
    assert renyi.step_divergence(np.empty((0, 4)), **MNIST, order=8).shape == (0, 4)


@pytest.mark.parametrize(
    "change", [
        {"sensitivity": 1.1}, {"sensitivity": -0.1}, {"sensitivity": math.nan}, {"sample_rate": 1.5},
        {"sample_rate": math.nan}, {"noise_multiplier": 0.0}, {"noise_multiplier": math.inf}, {"order": 1.5},
        {"order": math.nan}, {"order": []},
    ],
)  # fmt: skip
def test_divergence_refuses_arguments_out_of_range(change):
    with pytest.raises(ValueError, match=next(iter(change)).split("_")[0]):
        renyi.step_divergence(**({"sensitivity": 0.5, **MNIST, "order": 8} | change))


def test_order_schedules():
    i = np.array([0, 1, 2, 50, 3000])
    for p in (1.5, 40.0, 9e3):
        published, derived = [8.0], [8.0]
        for _ in range(3000):
            published.append(published[-1] * p / (p - 1) - 1 / p)
            derived.append(1 + (derived[-1] - 1) * p / (p - 1))
        with np.errstate(over="ignore"):
            np.testing.assert_allclose(renyi.order_schedule(8, p, i, "published"), np.array(published)[i], rtol=1e-10)
            np.testing.assert_allclose(renyi.order_schedule(8, p, i), np.array(derived)[i], rtol=1e-10)
        assert np.all(np.array(derived[1:100]) < np.array(published[1:100]))
    np.testing.assert_array_equal(renyi.order_schedule(8, math.inf, i), 8.0)
    with pytest.raises(ValueError, match="above 1"):
        renyi.order_schedule(8, 1.0, i)


class TwoSteps:
    """Two adaptive steps in one dimension: the second sensitivity is a function of the first outcome."""

    def __init__(self, q: float, sigma: float, first: float, center: float, width: float, lowest: float) -> None:
        self.q, self.sigma, self.first = q, sigma, first
        self.x = np.linspace(-9 * sigma, 9 * sigma + 20 * first, 3001)
        log_q = stats.norm.logpdf(self.x, 0, sigma)
        with np.errstate(divide="ignore"):
            log_p = np.logaddexp(np.log1p(-q) + log_q, math.log(q) + stats.norm.logpdf(self.x, first, sigma))
        self.log_p, self.log_q = log_p, log_q
        self.chance = np.exp(log_p) / np.exp(log_p).sum()
        self.second = lowest + (1 - lowest) * special.expit((self.x - center) / width)

    def exact(self, order: int) -> float:
        """Integrate the divergence of the pair of outcomes; the second step's is the series, exactly its integral."""
        inner = renyi_series(self.second, self.q, self.sigma, order)
        terms = order * self.log_p - (order - 1) * self.log_q + (order - 1) * inner
        return float(special.logsumexp(terms) + math.log(self.x[1] - self.x[0])) / (order - 1)

    def runs(self) -> np.ndarray:
        """Return the trajectories (runs, 2 steps, 1 point), one run per outcome of the first step."""
        return np.stack([np.full_like(self.second, self.first), self.second], axis=1)[:, :, None]


def renyi_series(s: np.ndarray, q: float, sigma: float, order: int) -> np.ndarray:
    """Evaluate the binomial sum directly, term by term."""
    k = np.arange(order + 1)
    with np.errstate(divide="ignore"):
        weights = np.log(special.binom(order, k)) + special.xlogy(order - k, 1 - q) + special.xlogy(k, q)
    exponents = k * (k - 1) * np.square(np.asarray(s))[..., None] / (2 * sigma**2)
    return special.logsumexp(weights + exponents, axis=-1) / (order - 1)


two_steps = [
    TwoSteps(0.3, 1.0, 1.0, 0.5, 0.3, 0.05), TwoSteps(0.1, 0.6, 0.8, 1.0, 0.1, 0.0),
    TwoSteps(1.0, 1.0, 1.0, 2.0, 0.2, 0.1), TwoSteps(0.05, 2.0, 0.2, 0.0, 1.0, 0.3),
]  # fmt: skip


@pytest.mark.parametrize("mechanism", two_steps)
@pytest.mark.parametrize("order", [2, 4])
def test_composed_bound_holds_for_two_adaptive_steps_and_every_exponent(mechanism, order):
    exact = mechanism.exact(order)
    arguments = (mechanism.runs(), np.array([0, 1]), 2, mechanism.q, mechanism.sigma, order)
    for fractional in ("interpolated", "rounded_up"):
        bounds = [
            renyi.composed_cost(*arguments, p, "derived", fractional, mechanism.chance).sum()
            for p in (1.3, 2.0, 3.0, 5.0, 10.0, 100.0, math.inf)
        ]
        assert min(bounds) >= exact * (1 - 1e-6)
        best = renyi.compose(*arguments, None, fractional, mechanism.chance)
        assert best.total[0] >= exact * (1 - 1e-6)
        assert best.total[0] <= bounds[-1] * (1 + 1e-12)


def test_composed_bound_is_the_sum_where_nothing_is_random():
    s = np.array([0.2, 0.9, 0.5])[None, :, None]
    expected = renyi_series(s[0, :, 0], 0.1, 1.0, 4).sum()
    best = renyi.compose(s, np.arange(3), 3, 0.1, 1.0, 4)
    assert best.total[0] == pytest.approx(expected, rel=1e-12)
    assert best.holder_exponent[0] == math.inf


def test_first_step_is_averaged_over_random_starts():
    """A start that differs between runs is part of the outcome: D = ln E exp((a-1) D(s_0)) / (a-1) exactly."""
    s = np.array([0.1, 1.0])[:, None, None]
    for order in (2, 6):
        each = renyi_series(s[:, 0, 0], 0.2, 0.7, order)
        exact = math.log(np.mean(np.exp((order - 1) * each))) / (order - 1)
        assert renyi.compose(s, np.array([0]), 1, 0.2, 0.7, order).total[0] == pytest.approx(exact, rel=1e-12)
        assert exact > each.mean()


def test_counting_steps_from_the_first_is_no_bound():
    """The published order of the steps, scaled to units of D: the second step loses the tilt the first one gives."""
    mechanism = TwoSteps(1.0, 0.25, 1.0, 2.0, 1e-3, 0.0)
    mechanism.second *= 0.24
    exact = mechanism.exact(2)
    p = 3.0
    arguments = (mechanism.runs(), np.array([0, 1]), 2, 1.0, 0.25, 2, p)
    published = renyi.composed_cost(*arguments, "published", run_weights=mechanism.chance)[:, 0]
    scaled = published / (p * (p / (p - 1)) ** np.arange(2))
    assert scaled.sum() < exact - 0.3
    derived = renyi.composed_cost(*arguments, "derived", run_weights=mechanism.chance)
    assert derived.sum() >= exact


def made_up_trajectories(runs: int = 4, steps: int = 6, points: int = 7, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return np.minimum(1, np.exp(generator.normal(-1, 1, points) + generator.normal(0, 0.7, (runs, steps, points))))


@given(st.integers(0, 10**6), st.sampled_from([2, 3.5, 8]))
@settings(max_examples=20, deadline=None)
def test_composed_bound_lies_between_the_average_and_the_largest_run(seed, order):
    s = made_up_trajectories(seed=seed)
    steps, weights = np.array([0, 3, 5, 9, 14, 20]), np.array([1.0, 3, 4, 5, 6, 2])
    divergence = renyi.step_divergence(s, 0.05, 1.1, order)
    for fractional in ("interpolated", "rounded_up"):
        best = renyi.compose(s, steps, 21, 0.05, 1.1, order, weights, fractional)
        assert np.all(best.total <= weights @ divergence.max(axis=0) * (1 + 1e-12))
        assert np.all(best.total >= weights @ divergence.mean(axis=0) * (1 - 1e-12))
        np.testing.assert_allclose(weights @ best.cost, best.total, rtol=1e-12)
    rounded = renyi.compose(s, steps, 21, 0.05, 1.1, order, weights, "rounded_up").total
    assert np.all(renyi.compose(s, steps, 21, 0.05, 1.1, order, weights).total <= rounded * (1 + 1e-12))


def test_best_composition_beats_a_fine_scan_to_within_a_per_cent():
    s = made_up_trajectories(runs=8, steps=20, points=30) * 0.3
    steps, total = np.arange(20) * 50, 1000
    weights = renyi.interpolation_weights(steps, total)
    scan = [
        weights @ renyi.composed_cost(s, steps, total, 0.01, 2.0, 8, p, step_weights=weights)
        for p in [*(total / np.geomspace(1e-3, 1.5, 120)), math.inf]
    ]
    best = renyi.compose(s, steps, total, 0.01, 2.0, 8, weights)
    assert np.all(best.total <= np.min(scan, axis=0) * 1.01)
    assert np.isfinite(best.holder_exponent).any()
    for point in (0, 17):
        exponent = best.holder_exponent[point]
        again = renyi.composed_cost(s, steps, total, 0.01, 2.0, 8, exponent, step_weights=weights)
        np.testing.assert_allclose(best.cost[:, point], again[:, point], rtol=1e-12)


def test_composition_does_not_depend_on_the_block(monkeypatch):
    s = made_up_trajectories(points=50)
    arguments = (s, np.arange(6), 6, 0.05, 1.0)
    whole = renyi.compose(*arguments, 8), renyi.trajectory_epsilons(*arguments, 1e-5)
    monkeypatch.setattr(renyi, "_BLOCK", 1)
    for one, other in zip(
        whole, (renyi.compose(*arguments, 8), renyi.trajectory_epsilons(*arguments, 1e-5)), strict=True
    ):
        for here, there in zip(one, other, strict=True):
            np.testing.assert_allclose(here, there, rtol=1e-12)


def test_weights_of_runs_are_repeated_runs():
    s = made_up_trajectories(runs=3)
    repeated = np.concatenate([s[:1], s[:1], s[1:2]])
    arguments = (np.arange(6), 6, 0.05, 1.0, 4)
    weighted = renyi.compose(s, *arguments, run_weights=np.array([2 / 3, 1 / 3, 0.0]))
    np.testing.assert_allclose(weighted.total, renyi.compose(repeated, *arguments).total, rtol=1e-12)


def published_cost(s: np.ndarray, step: int, q: float, sigma: float, order: float, p: float) -> float:
    """One step and point, from the description of the published code: loop over steps, then over k."""
    for _ in range(step):
        order = order * p / (p - 1) - 1 / p
    order = math.ceil(order)
    divergence = renyi_series(s, q, sigma, order)
    return special.logsumexp(divergence * p * (order - 1)) - math.log(len(s))


def test_published_convention_is_the_published_row_loop():
    s = made_up_trajectories(runs=3, steps=4, points=5)
    steps = np.array([0, 100, 300, 900])
    cost = renyi.composed_cost(s, steps, 1000, **MNIST, order=8, holder_exponent=2700, convention="published")
    expected = [
        [published_cost(s[:, i, j], step, *MNIST.values(), 8, 2700) for j in range(5)] for i, step in enumerate(steps)
    ]
    np.testing.assert_allclose(cost, expected, rtol=1e-9, atol=1e-10)
    account = renyi.account(s, steps, 1000, **MNIST, order=8, delta=1e-5, convention="published")
    np.testing.assert_array_equal(account.cost, cost)
    np.testing.assert_array_equal(account.composed, cost.sum(axis=0))
    assert np.isnan(account.epsilon_composed).all()


def test_published_convention_gives_numbers_of_the_published_files():
    """Point 1 of run 10 in ashmxta/interpretability_DP_SGD (83948ff): norm / batch size was taken for the norm."""
    distance = np.array([0.0028761907014995, 0.0039062441792339, 0.0039062518626451, 0.00390625, 0.0039062518626451])
    steps = np.array([200, 500, 700, 3700, 9300])
    saved = [0.0004513260313913, 0.0008324891751079, 0.0008324924501569, 0.0008324916562232, 0.0012718639539742]
    cost = renyi.composed_cost(
        distance[None, :, None], steps, 9375, **MNIST, order=8, holder_exponent=3 * 9300, convention="published"
    )
    np.testing.assert_allclose(cost[:, 0], saved, rtol=0, atol=2e-11)


@given(st.sets(st.integers(0, 60), min_size=1, max_size=12), st.integers(0, 30))
@settings(max_examples=60, deadline=None)
def test_interpolation_weights_add_up_an_interpolated_curve(chosen, later):
    steps = np.array(sorted(chosen))
    total = max(int(steps[-1]), 1) + later
    weights = renyi.interpolation_weights(steps, total)
    values = np.random.default_rng(0).uniform(0, 1, steps.size)
    assert weights @ values == pytest.approx(np.interp(np.arange(total), steps, values).sum(), rel=1e-12)
    assert weights.sum() == pytest.approx(total)
    np.testing.assert_allclose(renyi.interpolation_weights(np.arange(total), total), 1.0, rtol=1e-12)


def test_interpolating_costs_bounds_interpolated_divergences():
    """Costs interpolated between checkpoints against the cost of divergences interpolated, at p = infinity."""
    s = made_up_trajectories()
    steps = np.array([0, 4, 9, 11, 17, 20])
    time = np.arange(21)
    divergence = renyi.step_divergence(s, 0.05, 1.0, 8)
    between = np.stack([np.stack([np.interp(time, steps, curve) for curve in run.T]) for run in divergence])
    expected = between.max(axis=0).sum(axis=1)
    weights = renyi.interpolation_weights(steps, 21)
    found = weights @ np.concatenate([divergence.max(axis=0)])
    assert np.all(found >= expected * (1 - 1e-12))


def test_realised_sums_and_epsilons_agree_with_dp_accounting():
    q, sigma, steps = 0.01, 1.1, 30
    s = np.ones((2, steps, 3))
    account = renyi.account(s, np.arange(steps), steps, q, sigma, 8, 1e-5)
    event = dp_accounting.PoissonSampledDpEvent(q, dp_accounting.GaussianDpEvent(sigma))
    accountant = RdpAccountant(list(renyi.EPSILON_ORDERS)).compose(event, steps)
    expected = accountant.get_epsilon(1e-5)  # fractional orders by its own series
    for found in (account.epsilon_composed, account.epsilon_realised, account.epsilon_data_independent):
        np.testing.assert_allclose(found, expected, rtol=1e-9)
    at_eight = accountant._rdp[renyi.EPSILON_ORDERS.index(8.0)]
    for found in (account.composed, account.realised, account.data_independent):
        np.testing.assert_allclose(found, at_eight, rtol=1e-9)


def test_realised_sum_is_a_plain_sum():
    s = made_up_trajectories()
    weights = np.arange(1.0, 7.0)
    expected = [(weights[:, None] * renyi_series(run, 0.05, 1.0, 8)).sum(axis=0) for run in s]
    np.testing.assert_allclose(renyi.realised_sum(s, 0.05, 1.0, 8, weights), expected, rtol=1e-9)
    both = renyi.realised_sum(s, 0.05, 1.0, [8, 2])
    np.testing.assert_allclose(both[1], renyi.realised_sum(s, 0.05, 1.0, 2), rtol=1e-12)


@pytest.mark.parametrize("scale", [1.0, 0.1, 0.003])
def test_epsilons_are_the_least_over_orders(scale):
    """Whole orders alone, by the series and the full search for p, are never better by more than rounding."""
    s = made_up_trajectories(points=20) * scale
    weights = np.full(6, 200.0)
    arguments = (s, np.arange(6) * 200, 1200, *MNIST.values())
    found = renyi.trajectory_epsilons(*arguments, 1e-5, weights)
    np.testing.assert_array_equal(renyi.realised_epsilons(s, *MNIST.values(), 1e-5, weights), found.realised)
    whole = [2, 3, 4, 5, 6, 8, 10, 12, 16, 64, 256]
    expected, _ = renyi.epsilon(renyi.realised_sum(s, *MNIST.values(), whole, weights), whole, 1e-5)
    assert np.all(found.realised <= expected * (1 + 1e-3))
    assert scale < 1 or found.realised.mean() < 0.98 * expected.mean()
    totals = np.array([renyi.compose(*arguments, order, weights).total for order in whole[:9]])
    composed, _ = renyi.epsilon(totals, whole[:9], 1e-5)
    assert np.all(found.composed <= composed * 1.01)
    assert np.all(found.composed >= found.realised.mean(axis=0) * (1 - 1e-9))


def test_trajectories_are_checked():
    s, steps = made_up_trajectories(), np.arange(6)
    for bad_steps, total in ((steps[::-1], 6), (steps - 1, 6), (steps, 4), (steps, 0), (steps[:5], 6)):
        with pytest.raises(ValueError, match="steps"):
            renyi.compose(s, bad_steps, total, 0.1, 1.0, 8)
    with pytest.raises(ValueError, match="order"):
        renyi.compose(s, steps, 6, 0.1, 1.0, 1.5)
    with pytest.raises(ValueError, match="finite holder_exponent"):
        renyi.composed_cost(s, steps, 6, 0.1, 1.0, 8, math.inf, "published")
    with pytest.raises(ValueError, match="delta"):
        renyi.epsilon(np.ones((2, 3)), [2, 3], 1.0)
    with pytest.raises(ValueError, match="orders"):
        renyi.epsilon(np.ones((2, 3)), [1, 3], 1e-5)
