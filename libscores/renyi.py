"""Rényi privacy of one training point in DP-SGD, from the norms its gradient had along the way.

The per-step divergence is that of the sampled Gaussian mechanism (Mironov, Talwar, Zhang 2019, arXiv 1908.10530)
with the point's own sensitivity; the steps are composed in expectation over training runs (after Thudi et al.,
arXiv 2307.00310), derived anew in docs/renyi_composition.md. D(train with the point || train without it) takes
the norms of runs that train with the point; the other direction, `reverse`, those of runs without it. Throughout, a
sensitivity s = min(||g||, C)/C is in [0, 1], and `steps` count from 0 for the first.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

FORMAT = 2
"""To be raised when what a cost means changes; results of two formats are never mixed."""

Convention = Literal["derived", "published"]
FractionalOrders = Literal["interpolated", "rounded_up"]

EPSILON_ORDERS = (
    1.01, 1.02, 1.04, 1.07, *(round(1 + i / 10, 1) for i in range(1, 50)), *(i / 2 for i in range(12, 20)),
    *range(10, 16), *range(16, 32, 2), *range(32, 64, 4), 64, 80, 96, 128, 192, 256,
)  # fmt: skip
"""Orders tried when a Rényi divergence is turned into epsilon; whole ones or at most 10."""

_MAX_GROWTH = 1.5
_LOG_GROWTHS = np.geomspace(0.004, math.log(_MAX_GROWTH), 16)
_BLOCK = 1 << 21
_CHUNK = 4096
_EXPONENT_LIMIT = 600.0
_LARGEST_TILTED = 16
_NODES = 4096
_LEAST_NODE = 1e-4


def step_divergence(
    sensitivity: ArrayLike, sample_rate: float, noise_multiplier: float, order: ArrayLike
) -> np.ndarray:
    """Return the Rényi divergence of one DP-SGD step (sum update rule) for a point of given sensitivity.

    D_a(s) = 1/(a-1) ln sum_{k=0}^{a} binom(a,k) (1-q)^{a-k} q^k exp(k(k-1) s^2 / (2 sigma^2)); section
    3.3 of Mironov, Talwar, Zhang, arXiv 1908.10530v1, with s/sigma for 1/sigma. As the weights sum to one it is
    evaluated as log1p of a sum of expm1, in log space where that would overflow.

    Args:
        sensitivity: s, any shape, each in [0, 1].
        sample_rate: q, Poisson sampling rate, in [0, 1].
        noise_multiplier: sigma > 0, standard deviation of the noise on the sum over the clipping norm.
        order: a >= 2, or several; a fractional order is rounded up (D is non-decreasing in a).

    Returns:
        D in nats, float64, shape (*order.shape, *sensitivity.shape). Relative error below 1e-9 for orders up to 256.
        Non-decreasing in s exactly, not only up to rounding. Each entry depends on its own s alone.
        Edge cases: s = 0 or q = 0 gives 0; q = 1 gives a s^2 / (2 sigma^2).

    Raises:
        ValueError: An argument is out of range or NaN.
    """
    s = np.asarray(sensitivity)
    orders = whole_orders(order)
    if not 0 <= sample_rate <= 1:
        raise ValueError(f"sample_rate must be in [0, 1], got {sample_rate}")
    if not (noise_multiplier > 0 and math.isfinite(noise_multiplier)):
        raise ValueError(f"noise_multiplier must be positive and finite, got {noise_multiplier}")
    if s.size and not (s.min() >= 0 and s.max() <= 1):
        raise ValueError(f"sensitivity must be in [0, 1], got {s.min()} to {s.max()}")

    if sample_rate == 0:
        return np.zeros(orders.shape + s.shape)
    distinct = np.unique(orders)
    log_weights = np.full((distinct.size, distinct[-1] - 1), -np.inf)
    for row, a in enumerate(distinct.tolist()):
        k = np.arange(2, a + 1)
        log_binomial = np.array([math.log(math.comb(a, j)) for j in range(2, a + 1)])
        log_weights[row, : a - 1] = log_binomial + special.xlogy(k, sample_rate) + special.xlog1py(a - k, -sample_rate)

    flat = s.reshape(-1)
    divergence = np.empty((distinct.size, flat.size))
    for start in range(0, flat.size, _CHUNK):
        chunk = slice(start, start + _CHUNK)
        squared = np.square(flat[chunk].astype(np.float64) / noise_multiplier)
        divergence[:, chunk] = _log_moments(_round_up(squared), distinct, log_weights)
    divergence /= (distinct - 1.0)[:, None]
    if distinct.size != orders.size or not np.array_equal(distinct, orders.reshape(-1)):
        divergence = divergence[np.searchsorted(distinct, orders.reshape(-1))]
    return divergence.reshape(orders.shape + s.shape)


def whole_orders(order: ArrayLike) -> np.ndarray:
    """Return orders rounded up to whole numbers, int64; raises ValueError on one below 2 or not finite."""
    orders = np.asarray(order, dtype=np.float64)
    if orders.size == 0 or not (np.all(np.isfinite(orders)) and orders.min() >= 2):
        raise ValueError(f"order must be at least 2 and finite, got {orders}")
    return np.ceil(orders).astype(np.int64)


def _round_up(x: np.ndarray) -> np.ndarray:
    """Round non-negative numbers up to 45 significant bits (by at most 6e-14 of their value).

    D is convex in x = (s/sigma)^2 and zero at zero, so two such neighbours differ in D by at least the same
    proportion, hundreds of times the rounding error of its evaluation: this is what makes D exactly monotone.
    """
    bits = np.ascontiguousarray(x).view(np.int64)
    return ((bits + 0xFF) & ~0xFF).view(np.float64)


def _log_moments(x: np.ndarray, orders: np.ndarray, log_weights: np.ndarray) -> np.ndarray:
    """Return (a-1) D_a for ascending orders (O,) and x = (s/sigma)^2, shape (O, n)."""
    weights = np.exp(log_weights)
    moments = np.zeros((orders.size, x.size))
    product = np.empty_like(moments)
    growth = np.empty_like(x)
    with np.errstate(over="ignore", invalid="ignore"):
        for k in range(2, int(orders[-1]) + 1):
            first = np.searchsorted(orders, k)
            np.multiply(x, k * (k - 1) / 2, out=growth)
            np.expm1(growth, out=growth)
            np.multiply(weights[first:, k - 2, None], growth, out=product[first:])
            moments[first:] += product[first:]
        np.log1p(moments, out=moments)
    limits = _EXPONENT_LIMIT / (orders * (orders - 1) / 2)
    large = np.flatnonzero(x > limits[-1])
    if large.size:
        terms_of = np.arange(2, orders[-1] + 1)
        exponents = (terms_of * (terms_of - 1) / 2)[:, None] * x[large]
        log_expm1 = exponents + np.log(-np.expm1(-exponents))
        for row, a in enumerate(orders.tolist()):
            here = x[large] > limits[row]
            if here.any():
                terms = log_weights[row, : a - 1, None] + log_expm1[: a - 1, here]
                moments[row, large[here]] = _softplus_of_sum(terms)
    return moments


def _softplus_of_sum(terms: np.ndarray) -> np.ndarray:
    """Return ln(1 + sum_k exp(terms[k])), summing over the first axis in order."""
    top = terms.max(axis=0)
    total = np.zeros_like(top)
    for term in np.exp(terms - top):
        total += term
    return np.logaddexp(0.0, top + np.log(total))


class _Table(NamedTuple):
    """Log moments (a-1) D_a on a grid of x = (s/sigma)^2, from 0."""

    x: np.ndarray
    """Shape (J,), increasing."""
    log_moment: np.ndarray
    """Shape (O, J)."""
    growth: np.ndarray
    """exp of the difference to the next node, less 1, shape (O, J - 1)."""


@lru_cache(maxsize=4)
def _table(sample_rate: float, noise_multiplier: float, orders: tuple[float, ...], reverse: bool) -> _Table:
    s = np.append(0.0, np.geomspace(_LEAST_NODE, 1, _NODES))
    log_moment = np.zeros((len(orders), s.size))
    a = np.array(orders)
    whole = (a == np.ceil(a)) & (a >= 2) & (not reverse)
    if whole.any():
        values = step_divergence(s, sample_rate, noise_multiplier, a[whole])
        log_moment[whole] = values * (a[whole, None] - 1)
    for part in np.array_split(np.arange(1, s.size), _NODES // 32):
        log_moment[np.ix_(~whole, part)] = _integrated_moments(
            s[part] / noise_multiplier, sample_rate, a[~whole], reverse
        )
    with np.errstate(over="ignore"):
        return _Table(np.square(s / noise_multiplier), log_moment, np.expm1(np.diff(log_moment, axis=1)))


def _integrated_moments(r: np.ndarray, sample_rate: float, orders: np.ndarray, reverse: bool) -> np.ndarray:
    """Return (a-1) D_a for any orders a > 1 and ascending r = s/sigma > 0, shape (O, n), by the trapezoidal rule.

    With u = q (exp(r z - r^2/2) - 1), z standard normal, the moment is E (1+u)^e with e = a, or e = 1 - a in reverse.
    As E u = 0 it is 1 + E[(1+u)^e - 1 - e u], whose integrand has one sign: small divergences keep their precision.
    """
    exponents = 1 - orders if reverse else orders
    width = min(0.25, 0.3 / r[-1])
    # The integrand's peak is at z = e r w, w = q e^(rz - r^2/2) / (1+u) < 1, and w < q/(1-q) where z < 0.
    lowest = exponents.min(initial=0.0) * r[-1] * (min(1.0, sample_rate / (1 - sample_rate)) if sample_rate < 1 else 1)
    z = np.arange(-13.0 + lowest, 13.0 + exponents.max(initial=1.0) * r[-1], width)
    tilt = r[:, None] * z - np.square(r)[:, None] / 2
    log_ratio = np.logaddexp(np.log1p(-sample_rate), math.log(sample_rate) + tilt) if sample_rate < 1 else tilt
    u = sample_rate * np.expm1(np.minimum(tilt, _EXPONENT_LIMIT))
    log_density = math.log(width) - (np.square(z) + math.log(2 * math.pi)) / 2
    small = np.abs(u) < 1e-4
    result = np.empty((orders.size, r.size))
    with np.errstate(over="ignore", invalid="ignore"):
        for row, e in enumerate(exponents.tolist()):
            series = e * (e - 1) / 2 * np.square(u) * (1 + (e - 2) / 3 * u * (1 + (e - 3) / 4 * u))
            excess = np.where(small, series, np.expm1(e * log_ratio) - e * u)
            result[row] = np.log1p((excess * np.exp(log_density)).sum(axis=1))
            large = ~(result[row] < 1)
            if large.any():
                result[row, large] = special.logsumexp(e * log_ratio[large] + log_density, axis=1)
    return result


def divergence_at(
    sensitivity: np.ndarray,
    sample_rate: float,
    noise_multiplier: float,
    orders: tuple[float, ...] = EPSILON_ORDERS,
    reverse: bool = False,
) -> Iterator[np.ndarray]:
    """Yield the Rényi divergence of one step at one order after another, fractional ones too.

    Read from a table of the moment over (s/sigma)^2: in the direction of `step_divergence` by linear interpolation,
    a bound since the moment is convex in it for every order above 1 (docs/renyi_composition.md), at most 1e-4 of D
    above it for moments below e^10; in reverse, D(without || with), at the next of the nodes, 0.5 % apart.

    Args:
        sensitivity: s, any shape, each in [0, 1].
        sample_rate: q in [0, 1].
        noise_multiplier: sigma > 0.
        orders: a > 1; fractional ones of at most 10.
        reverse: D(train without the point || train with it).

    Yields:
        D in nats, shape of `sensitivity`.
    """
    s = np.asarray(sensitivity, dtype=np.float64)
    if s.size and not (s.min() >= 0 and s.max() <= 1):
        raise ValueError(f"sensitivity must be in [0, 1], got {s.min()} to {s.max()}")
    if not min(orders) > 1:
        raise ValueError(f"orders must be above 1, got {orders}")
    if sample_rate == 0:
        yield from (np.zeros(s.shape) for _ in orders)
        return
    table = _table(sample_rate, noise_multiplier, tuple(orders), reverse)
    x = np.minimum(np.square(s / noise_multiplier), table.x[-1])
    if reverse:
        above = np.searchsorted(table.x, x)
        for order, moment in zip(orders, table.log_moment, strict=True):
            yield moment[above] / (order - 1)
        return
    below = np.clip(np.searchsorted(table.x, x, side="right") - 1, 0, table.x.size - 2)
    share = (x - table.x[below]) / np.diff(table.x)[below]
    for order, moment, growth in zip(orders, table.log_moment, table.growth, strict=True):
        value = growth.take(below)
        value *= share
        value = np.log1p(value, out=value) if value.ndim else np.log1p(value)
        value += moment.take(below)
        value /= order - 1
        yield value


def order_schedule(
    order: float, holder_exponent: float, steps_to_go: np.ndarray, convention: Convention = "derived"
) -> np.ndarray:
    """Return the order at which a step enters the composition, before rounding up.

    derived: a_i - 1 = (a - 1) (p/(p-1))^i (docs/renyi_composition.md); published: a_{i+1} = p/(p-1) a_i - 1/p
    (Thudi et al., arXiv 2307.00310, as in their code), in closed form. p = infinity keeps a_i = a.

    Args:
        order: a > 1, the order of the composed divergence.
        holder_exponent: p > 1, may be infinite.
        steps_to_go: i >= 0, steps that follow this one (published code: steps before it), any shape.
        convention: Which recursion.

    Returns:
        a_i, float64, same shape as steps_to_go.
    """
    if not holder_exponent > 1:
        raise ValueError(f"holder_exponent must be above 1, got {holder_exponent}")
    fixed_point = 1.0 if convention == "derived" or holder_exponent == math.inf else 1 - 1 / holder_exponent
    growth = np.exp(-np.asarray(steps_to_go) * math.log1p(-1 / holder_exponent))
    return fixed_point + (order - fixed_point) * growth


def composed_cost(
    sensitivity: np.ndarray,
    steps: np.ndarray,
    total_steps: int,
    sample_rate: float,
    noise_multiplier: float,
    order: float,
    holder_exponent: float,
    convention: Convention = "derived",
    fractional_orders: FractionalOrders = "interpolated",
    run_weights: np.ndarray | None = None,
    step_weights: np.ndarray | None = None,
) -> np.ndarray:
    """Return what each step adds to the Rényi divergence of the whole run, in expectation over runs.

    derived: cost_t = 1/lambda ln E exp(lambda D_{a_i}(s_t)), i = T-1-t, lambda = p (a_i - 1), but a_i - 1 for t = 0
    where that column stands for no other step; the costs of all T steps add up to a bound on D_a(run)
    (docs/renyi_composition.md) if E is over all runs. p = infinity takes the
    maximum over runs. published: ln E exp(p (b - 1) D_b(s_t)) with b = ceil(a_i) and i = t, as the code beside
    arXiv 2307.00310 saves it; not in units of D, and not a bound.

    Args:
        sensitivity: s of each run, step and point, shape (R, S, P), in [0, 1]; the runs train with the point.
        steps: Step of each column, shape (S,), increasing, in 0...T.
        total_steps: T, steps of the whole run.
        sample_rate: q in [0, 1].
        noise_multiplier: sigma > 0.
        order: a >= 2; a fractional one is rounded up.
        holder_exponent: p > 1, may be infinite (derived only).
        convention: Which formula.
        fractional_orders: D at a fractional a_i (derived only): by linear interpolation of the log moment (a-1) D_a,
            which is convex in a, or at the next whole order; both are bounds, the first is the lower one.
        run_weights: Probability of each run, shape (R,); equal if not given.
        step_weights: Steps that each column stands for, shape (S,); ones if not given.

    Returns:
        Cost, shape (S, P); nats in the derived convention.
    """
    s, steps = _check_trajectories(sensitivity, steps, total_steps)
    if convention == "published" and holder_exponent == math.inf:
        raise ValueError("the published convention needs a finite holder_exponent")
    order = int(whole_orders(order))
    position = np.maximum(total_steps - 1 - steps, 0) if convention == "derived" else steps
    schedule = order_schedule(order, holder_exponent, position, convention)
    orders = np.unique([np.floor(schedule), np.ceil(schedule)]).astype(np.int64)
    cost = np.empty(s.shape[1:])
    for points, divergence in _divergence_blocks(s, sample_rate, noise_multiplier, orders):
        if convention == "derived":
            values = _between_orders(divergence, orders, schedule, fractional_orders)
            scale = _scale(schedule, holder_exponent, steps, step_weights)
            cost[:, points] = _log_mean_exp(values, scale, run_weights)
        else:
            scale = holder_exponent * (np.ceil(schedule) - 1)
            values = _between_orders(divergence, orders, schedule, "rounded_up")
            cost[:, points] = scale[:, None] * _log_mean_exp(values, scale, run_weights)
    return cost


class Composition(NamedTuple):
    """The least composed value of each point over the candidates for p.

    At p = infinity, which wins wherever noise reaches every weight, it is the sum over steps of the largest divergence
    among the R runs: it grows with R, and only the limit of all runs is a bound.
    """

    cost: np.ndarray
    """What each step adds, nats, shape (S, P)."""
    total: np.ndarray
    """Sum of the costs, each times its step's weight, nats, shape (P,)."""
    holder_exponent: np.ndarray
    """The p it is reached at, infinity included, shape (P,)."""


def compose(
    sensitivity: np.ndarray,
    steps: np.ndarray,
    total_steps: int,
    sample_rate: float,
    noise_multiplier: float,
    order: float,
    step_weights: np.ndarray | None = None,
    fractional_orders: FractionalOrders = "interpolated",
    run_weights: np.ndarray | None = None,
) -> Composition:
    """Return the composed bound of each point with the p that makes its total least (derived convention).

    Any p gives a bound, so the search only has to be good: p = infinity and a geometric grid of ln of the growth
    (p/(p-1))^(T-1) of a - 1 over the run, every point taking its own best. No local minimum misleads it, and on real
    trajectories it is within 0.3 % of a grid ten times finer.

    Args:
        sensitivity: s of each run, step and point, shape (R, S, P), in [0, 1]; the runs train with the point.
        steps: Step of each column, shape (S,), increasing, in 0...T.
        total_steps: T, steps of the whole run.
        sample_rate: q in [0, 1].
        noise_multiplier: sigma > 0.
        order: a >= 2; a fractional one is rounded up.
        step_weights: Steps that each column stands for, shape (S,), see `interpolation_weights`; ones if not given.
        fractional_orders: See `composed_cost`.
        run_weights: Probability of each run, shape (R,); equal if not given.

    Raises:
        ValueError: An argument is out of range.
    """
    s, steps = _check_trajectories(sensitivity, steps, total_steps)
    order = int(whole_orders(order))
    orders = np.arange(order, math.ceil(1 + (order - 1) * _MAX_GROWTH) + 1)
    result = Composition(np.empty(s.shape[1:]), np.empty(s.shape[2]), np.empty(s.shape[2]))
    for points, divergence in _divergence_blocks(s, sample_rate, noise_multiplier, orders):
        block = _best_composition(
            divergence, orders, steps, total_steps, order, step_weights, fractional_orders, run_weights
        )
        for whole, part in zip(result, block, strict=True):
            whole[..., points] = part
    return result


def _best_composition(
    divergence: np.ndarray,
    orders: np.ndarray,
    steps: np.ndarray,
    total_steps: int,
    order: float,
    step_weights: np.ndarray | None,
    fractional_orders: FractionalOrders,
    run_weights: np.ndarray | None = None,
    log_growths: np.ndarray = _LOG_GROWTHS,
) -> Composition:
    weights = np.ones(steps.size) if step_weights is None else step_weights
    to_go = np.maximum(total_steps - 1 - steps, 0)
    most = math.log((orders[-1] - 1) / (order - 1))
    growths = log_growths[log_growths <= most + 1e-12]
    candidates = -1 / np.expm1(-growths / (total_steps - 1)) if total_steps > 1 else np.empty(0)
    best: Composition | None = None
    for exponent in [math.inf, *candidates.tolist()]:
        schedule = order_schedule(order, exponent, to_go)
        values = _between_orders(divergence, orders, schedule, fractional_orders)
        cost = _log_mean_exp(values, _scale(schedule, exponent, steps, weights), run_weights)
        total = weights @ cost
        if best is None:
            best = Composition(cost, total, np.full(total.size, exponent))
            continue
        better = total < best.total
        best.cost[:, better] = cost[:, better]
        best.total[better] = total[better]
        best.holder_exponent[better] = exponent
    assert best is not None
    return best


def _scale(
    schedule: np.ndarray, holder_exponent: float, steps: np.ndarray, step_weights: np.ndarray | None
) -> np.ndarray:
    """Return lambda of each column; the first step's smaller one would be no bound for steps interpolated from it."""
    first = (steps == 0) & (True if step_weights is None else step_weights <= 1)
    return np.where(first, 1.0, holder_exponent) * (schedule - 1)


def _between_orders(
    divergence: np.ndarray, orders: np.ndarray, schedule: np.ndarray, fractional_orders: FractionalOrders
) -> np.ndarray:
    """Return D (S, R, P) at each step's own order from D (O, S, R, P) at ascending whole orders."""
    step = np.arange(schedule.size)
    above = np.minimum(np.searchsorted(orders, schedule), orders.size - 1)
    if fractional_orders == "rounded_up" or np.all(orders[above] == schedule):
        return divergence[above, step]
    below = np.maximum(above - 1, 0)
    share = np.where(above > below, (schedule - orders[below]) / np.maximum(orders[above] - orders[below], 1), 1.0)
    share_below = (1 - share) * (orders[below] - 1) / (schedule - 1)
    share_above = share * (orders[above] - 1) / (schedule - 1)
    values = divergence[below, step]
    values *= share_below[:, None, None]
    return values + share_above[:, None, None] * divergence[above, step]


def _log_mean_exp(values: np.ndarray, scale: np.ndarray, run_weights: np.ndarray | None) -> np.ndarray:
    """Return 1/scale ln E exp(scale * values) over runs, shape (S, P), of values (S, R, P) and scales (S,)."""
    result = values.max(axis=1)
    finite = np.isfinite(scale)
    scale = scale[finite, None]
    below = np.expm1((values[finite] - result[finite, None]) * scale[:, None])
    mean = below.mean(axis=1) if run_weights is None else np.einsum("srp,r->sp", below, run_weights / run_weights.sum())
    result[finite] += np.log1p(mean) / scale
    return result


def _divergence_blocks(
    s: np.ndarray, sample_rate: float, noise_multiplier: float, orders: np.ndarray
) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield slices of the points with their divergences (O, S, R, P), a block of bounded size at a time."""
    per_point = orders.size * s.shape[0] * s.shape[1]
    width = max(1, _BLOCK // max(per_point, 1))
    for start in range(0, s.shape[2], width):
        points = slice(start, start + width)
        yield points, step_divergence(s[:, :, points].transpose(1, 0, 2), sample_rate, noise_multiplier, orders)


def _check_trajectories(sensitivity: np.ndarray, steps: np.ndarray, total_steps: int) -> tuple[np.ndarray, np.ndarray]:
    s, steps = np.asarray(sensitivity), np.asarray(steps)
    if s.ndim != 3 or s.shape[0] == 0 or s.shape[1:2] != steps.shape or steps.size == 0:
        raise ValueError(f"expected sensitivities (runs, steps, points) and steps, got {s.shape} and {steps.shape}")
    _check_steps(steps, total_steps)
    return s, steps


def _check_steps(steps: np.ndarray, total_steps: int) -> None:
    if steps.size == 0 or np.any(np.diff(steps) <= 0) or steps[0] < 0 or steps[-1] > total_steps or total_steps < 1:
        raise ValueError(f"steps must increase within 0...{total_steps}, got {steps}")


def interpolation_weights(steps: np.ndarray, total_steps: int) -> np.ndarray:
    """Return how many of the T steps each measured step stands for under linear interpolation.

    Interpolating a curve linearly between the measured steps (constant outside them) and adding it up over
    t = 0...T-1 equals the dot product of its measured values with these weights, so no (T, points) array is needed.

    Args:
        steps: Measured steps, shape (S,), increasing, in 0...T.
        total_steps: T >= 1.

    Returns:
        Weights, shape (S,), non-negative, summing to T; all ones when every step was measured.
    """
    steps = np.asarray(steps)
    _check_steps(steps, total_steps)
    time = np.arange(total_steps)
    right = np.clip(np.searchsorted(steps, time, side="right"), 1, max(steps.size - 1, 1))
    left = right - 1
    right = np.minimum(right, steps.size - 1)
    span = np.maximum(steps[right] - steps[left], 1)
    share = np.clip((time - steps[left]) / span, 0.0, 1.0)
    return np.bincount(left, 1 - share, steps.size) + np.bincount(right, share, steps.size)


def realised_sum(
    sensitivity: np.ndarray,
    sample_rate: float,
    noise_multiplier: float,
    order: ArrayLike,
    step_weights: np.ndarray | None = None,
) -> np.ndarray:
    """Return each run's own sum over steps of D_a(s_t): individual accounting.

    Feldman and Zrnic 2021, arXiv 2008.11193, and Yu et al. 2022, arXiv 2206.02617. It is what this run spent, not a
    guarantee for the training algorithm: that needs a filter or, over runs, `compose`.

    Args:
        sensitivity: s of each run, step and point, shape (R, S, P), in [0, 1].
        sample_rate: q in [0, 1].
        noise_multiplier: sigma > 0.
        order: a >= 2, or several.
        step_weights: Steps that each column stands for, shape (S,); ones if not given.

    Returns:
        Sums in nats, shape (*order.shape, R, P).
    """
    s = np.asarray(sensitivity)
    orders = whole_orders(order)
    weights = np.ones(s.shape[1]) if step_weights is None else np.asarray(step_weights, dtype=np.float64)
    total = np.empty((orders.size, s.shape[0], s.shape[2]))
    for points, divergence in _divergence_blocks(s, sample_rate, noise_multiplier, orders.reshape(-1)):
        total[:, :, points] = np.einsum("osrp,s->orp", divergence, weights)
    return total.reshape(orders.shape + total.shape[1:])


def epsilon(divergence: np.ndarray, orders: ArrayLike, delta: float) -> tuple[np.ndarray, np.ndarray]:
    """Turn Rényi divergences at several orders into the least epsilon of (epsilon, delta)-privacy.

    epsilon = min_a [ D_a + ln((a-1)/a) - (ln delta + ln a)/(a-1) ], not below 0: theorem 21 of Balle, Barthe,
    Gaboardi, Hsu, Sato 2020, arXiv 1905.09982v4.

    Args:
        divergence: D_a >= 0 in nats, shape (O, ...), infinity allowed.
        orders: The orders, each above 1, length O.
        delta: In (0, 1).

    Returns:
        epsilon and the order it is reached at, each of shape divergence.shape[1:].
    """
    a = np.asarray(orders, dtype=np.float64)
    candidates = np.asarray(divergence) + epsilon_offset(a, delta).reshape((-1,) + (1,) * (np.ndim(divergence) - 1))
    best = candidates.argmin(axis=0)
    return np.maximum(np.take_along_axis(candidates, best[None], axis=0)[0], 0.0), a[best]


def epsilon_offset(orders: np.ndarray, delta: float) -> np.ndarray:
    """Return what `epsilon` adds to the divergence at each order, shape of `orders`."""
    if not 0 < delta < 1:
        raise ValueError(f"delta must be in (0, 1), got {delta}")
    if orders.size == 0 or not orders.min() > 1:
        raise ValueError(f"orders must be above 1, got {orders}")
    return np.log1p(-1 / orders) - (math.log(delta) + np.log(orders)) / (orders - 1)


def realised_epsilons(
    sensitivity: np.ndarray,
    sample_rate: float,
    noise_multiplier: float,
    delta: float,
    step_weights: np.ndarray | None = None,
    reverse: bool = False,
) -> np.ndarray:
    """Return each run's realised epsilon at delta, the least over `EPSILON_ORDERS`.

    Args:
        sensitivity: s of each run, step and point, shape (R, S, P), in [0, 1].
        sample_rate: q in [0, 1].
        noise_multiplier: sigma > 0.
        delta: In (0, 1).
        step_weights: Steps that each column stands for, shape (S,); ones if not given.
        reverse: D(train without the point || train with it), from runs without it.

    Returns:
        Epsilon, shape (R, P).
    """
    s = np.asarray(sensitivity)
    weights = np.ones(s.shape[1]) if step_weights is None else np.asarray(step_weights, dtype=np.float64)
    best = np.full((s.shape[0], s.shape[2]), math.inf)
    for block, _, offset, divergence in _divergences_at_orders(s, sample_rate, noise_multiplier, delta, reverse):
        best[:, block] = np.minimum(best[:, block], np.einsum("rsp,s->rp", divergence, weights) + offset)
    return np.maximum(best, 0.0)


def _divergences_at_orders(
    s: np.ndarray, sample_rate: float, noise_multiplier: float, delta: float, reverse: bool
) -> Iterator[tuple[np.ndarray, float, float, np.ndarray]]:
    """Yield points, an order, what `epsilon` adds at it, and D (R, S, points), over all blocks of points and orders."""
    offsets = epsilon_offset(np.array(EPSILON_ORDERS), delta)
    width = max(1, _BLOCK // max(s.shape[0] * s.shape[1], 1))
    for start in range(0, s.shape[2], width):
        block = np.arange(start, min(start + width, s.shape[2]))
        divergences = divergence_at(s[:, :, block], sample_rate, noise_multiplier, EPSILON_ORDERS, reverse)
        for order, offset, divergence in zip(EPSILON_ORDERS, offsets.tolist(), divergences, strict=True):
            yield block, order, offset, divergence


class Epsilons(NamedTuple):
    """Epsilon at a given delta, the least over `EPSILON_ORDERS`."""

    composed: np.ndarray
    """Of the composed value, shape (P,)."""
    realised: np.ndarray
    """Of each run's realised sum, shape (R, P)."""
    composed_order: np.ndarray
    """Order that the composed epsilon is reached at, shape (P,)."""


def trajectory_epsilons(
    sensitivity: np.ndarray,
    steps: np.ndarray,
    total_steps: int,
    sample_rate: float,
    noise_multiplier: float,
    delta: float,
    step_weights: np.ndarray | None = None,
    fractional_orders: FractionalOrders = "interpolated",
    reverse: bool = False,
) -> Epsilons:
    """Return epsilon at delta of the composed value and of every realised sum.

    The composed one takes p = infinity at every order, then finite p, fewer than `compose` tries, at the whole orders
    next to those that were best, up to 16; in reverse p = infinity only. A coarse search costs tightness alone.

    Args:
        sensitivity: s of each run, step and point, shape (R, S, P), in [0, 1]; the runs train with the point, or,
            in reverse, without it.
        steps: Step of each column, shape (S,), increasing, in 0...T.
        total_steps: T, steps of the whole run.
        sample_rate: q in [0, 1].
        noise_multiplier: sigma > 0.
        delta: In (0, 1).
        step_weights: Steps that each column stands for, shape (S,); ones if not given.
        fractional_orders: See `composed_cost`.
        reverse: D(train without the point || train with it).
    """
    s, steps = _check_trajectories(sensitivity, steps, total_steps)
    weights = np.ones(steps.size) if step_weights is None else np.asarray(step_weights, dtype=np.float64)
    runs, _, points = s.shape
    best = Epsilons(np.full(points, math.inf), np.full((runs, points), math.inf), np.ones(points))
    for block, order, offset, divergence in _divergences_at_orders(s, sample_rate, noise_multiplier, delta, reverse):
        realised = np.einsum("rsp,s->rp", divergence, weights) + offset
        best.realised[:, block] = np.minimum(best.realised[:, block], realised)
        scale = _scale(np.full(steps.size, order), math.inf, steps, weights)
        composed = weights @ _log_mean_exp(divergence.transpose(1, 0, 2), scale, None) + offset
        _keep_least(best, block, composed, order)
    best_orders = best.composed_order.copy()
    for order in range(2, _LARGEST_TILTED + 1) if not reverse else ():
        near = np.flatnonzero(np.abs(best_orders - order) < 1)
        orders = np.arange(order, math.ceil(1 + (order - 1) * _MAX_GROWTH) + 1)
        offset = float(epsilon_offset(np.array([float(order)]), delta)[0])
        for part, whole in _divergence_blocks(s[:, :, near], sample_rate, noise_multiplier, orders):
            found = _best_composition(
                whole, orders, steps, total_steps, order, weights, fractional_orders, log_growths=_LOG_GROWTHS[3::4]
            )
            _keep_least(best, near[part], found.total + offset, order)
    return Epsilons(np.maximum(best.composed, 0.0), np.maximum(best.realised, 0.0), best.composed_order)


def _keep_least(best: Epsilons, points: np.ndarray, composed: np.ndarray, order: float) -> None:
    better = composed < best.composed[points]
    best.composed[points[better]] = composed[better]
    best.composed_order[points[better]] = order


class Account(NamedTuple):
    """Everything the per-instance study reports of a set of trajectories."""

    cost: np.ndarray
    """What each measured step adds, shape (S, P); see `composed_cost` for the unit in each convention."""
    composed: np.ndarray
    """Total of the costs, shape (P,), nats in the derived convention: the largest of R runs, see `Composition`."""
    holder_exponent: np.ndarray
    """p of each point, shape (P,)."""
    realised: np.ndarray
    """Each run's realised sum, nats, shape (R, P)."""
    data_independent: float
    """The same sum for a point with s = 1 throughout, nats."""
    epsilon_composed: np.ndarray
    """Shape (P,); NaN in the published convention, whose total is no divergence."""
    epsilon_realised: np.ndarray
    """Shape (R, P)."""
    epsilon_data_independent: float
    """Epsilon of s = 1 throughout."""


def account(
    sensitivity: np.ndarray,
    steps: np.ndarray,
    total_steps: int,
    sample_rate: float,
    noise_multiplier: float,
    order: float,
    delta: float,
    convention: Convention = "derived",
    interpolate: bool = True,
    fractional_orders: FractionalOrders = "interpolated",
    reverse: bool = False,
) -> Account:
    """Return composed, realised and data-independent costs and their epsilons.

    In reverse a step's divergence is that of the base from the mixture, at most the other one at equal sensitivity
    (theorem 5 of Mironov, Talwar, Zhang, arXiv 1908.10530v1) and never above -ln(1-q); p is infinity.

    Args:
        sensitivity: s of each run, step and point, shape (R, S, P), in [0, 1]; the runs train with the point, or, in
            reverse, without it.
        steps: Step of each column, shape (S,), increasing, in 0...T.
        total_steps: T, steps of the whole run.
        sample_rate: q in [0, 1].
        noise_multiplier: sigma > 0.
        order: a >= 2; a fractional one is rounded up, but not in reverse.
        delta: In (0, 1).
        convention: "published" composes as the published code does: p is three times the last step, orders count from
            the first step, and the total is over the measured steps only. Not in reverse.
        interpolate: Totals over all T steps, interpolated between the measured ones; else over the measured ones.
        fractional_orders: See `composed_cost`.
        reverse: D(train without the point || train with it).

    Returns:
        The account. Totals over interpolated steps, and expectations over few runs, are estimates.
    """
    s, steps = _check_trajectories(sensitivity, steps, total_steps)
    weights = interpolation_weights(steps, total_steps) if interpolate else np.ones(steps.size)
    inputs = (s, steps, total_steps, sample_rate, noise_multiplier)
    epsilons = trajectory_epsilons(*inputs, delta, weights, fractional_orders, reverse)
    mechanism = (sample_rate, noise_multiplier)
    if reverse:
        (divergence,) = divergence_at(s, *mechanism, (order,), reverse)
        cost, forever = divergence.max(axis=0), np.full(s.shape[2], math.inf)
        composition, realised = Composition(cost, weights @ cost, forever), np.einsum("rsp,s->rp", divergence, weights)
        (worst,) = divergence_at(np.ones(()), *mechanism, (order,), reverse)
    else:
        realised = realised_sum(s, *mechanism, order, weights)
        worst = step_divergence(1.0, *mechanism, order)
        if convention == "derived":
            composition = compose(*inputs, order, weights, fractional_orders)
        else:
            exponent = 3.0 * float(steps[-1])
            cost = composed_cost(*inputs, order, exponent, convention)
            composition = Composition(cost, cost.sum(axis=0), np.full(s.shape[2], exponent))
            epsilons = epsilons._replace(composed=np.full(s.shape[2], math.nan))
    everywhere = np.array(list(divergence_at(np.ones(()), *mechanism, reverse=reverse))) * weights.sum()
    return Account(
        *composition,
        realised=realised,
        data_independent=float(worst) * weights.sum(),
        epsilon_composed=epsilons.composed,
        epsilon_realised=epsilons.realised,
        epsilon_data_independent=float(epsilon(everywhere, EPSILON_ORDERS, delta)[0]),
    )


class InterpolationError(NamedTuple):
    """What measuring at a few stages costs, against every step of the same runs; each of shape (R, P)."""

    total: np.ndarray
    """Realised sum from the stages over that of every step, less 1; NaN where the latter is 0."""
    epsilon: np.ndarray
    """Epsilon from the stages less that from every step."""
    step_low: np.ndarray
    """2.5 % point over the steps of (interpolated divergence / divergence) - 1, steps without cost left out."""
    step_high: np.ndarray
    """97.5 % point."""


def interpolation_error(
    sensitivity: np.ndarray,
    stages: np.ndarray,
    sample_rate: float,
    noise_multiplier: float,
    order: float,
    delta: float,
) -> InterpolationError:
    """Return the error of totals that are interpolated between stages, from runs measured at every step.

    Args:
        sensitivity: s of each run, step and point, shape (R, T, P), in [0, 1], steps 0...T-1.
        stages: The steps to keep, shape (S,), increasing, in 0...T-1.
        sample_rate: q in [0, 1].
        noise_multiplier: sigma > 0.
        order: a >= 2.
        delta: In (0, 1).
    """
    s, stages = np.asarray(sensitivity), np.asarray(stages)
    time = np.arange(s.shape[1])
    weights = interpolation_weights(stages, time.size)
    exact = step_divergence(s, sample_rate, noise_multiplier, order)
    hat = np.stack([np.interp(time, stages, row) for row in np.eye(stages.size)], axis=1)
    between = np.einsum("ts,rsp->rtp", hat, exact[:, stages])
    mechanism = (time.size, sample_rate, noise_multiplier, delta)
    epsilons = [
        trajectory_epsilons(s[:, kept], kept, *mechanism, step_weights=each).realised
        for kept, each in ((stages, weights), (time, np.ones(time.size)))
    ]
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(exact > 0, between / exact - 1, math.nan)
        total = np.where(exact.sum(axis=1) > 0, between.sum(axis=1) / exact.sum(axis=1) - 1, math.nan)
    some = np.asarray(np.isfinite(ratio).any(axis=1))
    low, high = (
        np.where(some, np.nanquantile(np.where(some[:, None], ratio, 0.0), share, axis=1), math.nan)
        for share in (0.025, 0.975)
    )
    return InterpolationError(total, epsilons[0] - epsilons[1], low, high)
