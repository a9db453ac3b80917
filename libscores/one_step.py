"""Per-instance guarantees of one DP-SGD step whose update depends on the rest of the batch.

Thudi et al., arXiv 2307.00310: the Rényi divergence of the mean update rule and the (epsilon, delta) guarantee, as
the code beside the paper evaluates them; docs/renyi_composition.md proves both. A step draws a batch B from the
other points, joins the point with probability q, and releases the update u(B) plus Gaussian noise. The guarantees run
from training with the point to training without it; the other direction costs at most epsilon = -ln(1 - q), as
P >= (1 - q) Q.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy import special

from libscores.renyi import step_divergence

FORMAT = 1
"""To be raised when what a cost means changes; results of two formats are never mixed."""
_HOLDER_EXPONENTS = np.concatenate([1 + np.geomspace(0.05, 1e4, 60), [math.inf]])


def mean_rule_divergence(
    updates_with: np.ndarray, update_without: np.ndarray, noise_std: float, weights: np.ndarray | None = None
) -> np.ndarray:
    """Return a bound on the Rényi divergence of one step, from sampled batches and their updates.

    D_a <= E_B [ 1/(a-1) ln E_{B_1...B_a} exp( sum_{i<j} <u_i - u, u_j - u> / std^2 ) ], u = u(B) of a batch without
    the point, u_1...u_a of independent batches of the data with it (theorem 3.6 of arXiv 2307.00310, by the comment
    in its code). The published exponent -( sum ||u_i||^2 - (a-1)||u||^2 - ||sum u_i - (a-1) u||^2 ) / (2 std^2)
    is the same number.

    Args:
        updates_with: u_1...u_a, shape (T, n, a, d): n tuples for each of T batches B; a >= 2 is the order.
        update_without: u, shape (T, d).
        noise_std: Standard deviation of the noise on the update, in the update's unit, > 0: for a mean over B examples
            noise_multiplier * C / B (the published code takes noise_multiplier alone).
        weights: Probability that each of the n tuples stands for, shape (n,), adding up to 1; 1/n by default.

    Returns:
        The inner term for each B, nats, shape (T,); their mean estimates the bound. A mean over finitely many tuples
        under-estimates the inner expectation of a convex function on average, so the result is an estimate.
    """
    if updates_with.ndim != 4 or updates_with.shape[2] < 2 or update_without.shape != updates_with.shape[::3]:
        raise ValueError(f"expected (T, n, a >= 2, d) and (T, d), got {updates_with.shape} and {update_without.shape}")
    if not noise_std > 0:
        raise ValueError(f"noise_std must be positive, got {noise_std}")
    order = updates_with.shape[2]
    differences = (updates_with - update_without[:, None, None]) / noise_std
    pairs = np.square(differences.sum(axis=2)).sum(axis=-1) - np.square(differences).sum(axis=(2, 3))
    each = np.full(pairs.shape[1], 1 / pairs.shape[1]) if weights is None else np.asarray(weights)
    if each.shape != pairs.shape[1:] or np.any(each < 0) or not math.isclose(each.sum(), 1, rel_tol=1e-9):
        raise ValueError(f"expected {pairs.shape[1]} weights that add up to 1, got {each}")
    return special.logsumexp(pairs / 2, axis=1, b=each) / (order - 1)


class MeanRuleStep(NamedTuple):
    """What a step of the mean rule costs one point, from T sampled batches without it.

    Attributes:
        shift: ||u(B with x) - u(B)||, in the gradients' unit, shape (T,).
        theorem: The term of `mean_rule_divergence` for each batch, nats, shape (T,); their mean is the estimate.
        coupled: The term of `coupled_mean_rule_divergence` for each batch, nats, shape (T,).
    """

    shift: np.ndarray
    theorem: np.ndarray
    coupled: np.ndarray


def mean_rule_step(
    batch_sums: np.ndarray,
    batch_sizes: np.ndarray,
    gradient: np.ndarray,
    sample_rate: float,
    noise_std: float,
    order: int,
    n_tuples: int,
    seed: int,
) -> MeanRuleStep:
    """Return the mean rule's divergences of one point under sampled batches; the update of no example is 0.

    The tuples of `mean_rule_divergence` are drawn from the same batches, never one twice in a tuple, by strata:
    n_tuples for each number k = 0...order of batches that hold the point, weighing Binomial(order, q)(k) / n_tuples.

    Args:
        batch_sums: Clipped gradient sums of T > order batches without the point, shape (T, d).
        batch_sizes: Their numbers of examples, shape (T,).
        gradient: The point's clipped gradient, shape (d,).
        sample_rate: q in (0, 1].
        noise_std: Standard deviation of the noise on the mean, in the gradients' unit, > 0.
        order: Rényi order, whole, >= 2.
        n_tuples: Tuples of each stratum, >= 1.
        seed: Seed of the tuples.
    """
    count = len(batch_sums)
    if count <= order:
        raise ValueError(f"order {order} needs more than {order} batches, got {count}")
    without = batch_sums / np.maximum(batch_sizes, 1)[:, None]
    joined = (batch_sums + gradient) / (batch_sizes + 1)[:, None]
    shift = np.linalg.norm(joined - without, axis=1)

    generator = np.random.default_rng(seed)
    held = np.arange(order) < np.repeat(np.arange(order + 1), n_tuples)[:, None]
    hits = held.sum(axis=1)
    weights = special.comb(order, hits) * sample_rate**hits * (1 - sample_rate) ** (order - hits) / n_tuples
    theorem = np.empty(count)
    for row in range(count):
        others = np.delete(np.arange(count), row)
        drawn = generator.permuted(np.broadcast_to(others, (len(held), count - 1)), axis=1)[:, :order]
        updates = np.where(held[..., None], joined[drawn], without[drawn])
        theorem[row] = mean_rule_divergence(updates[None], without[row : row + 1], noise_std, weights)[0]
    largest = float(shift.max()) or 1.0
    return MeanRuleStep(shift, theorem, step_divergence(shift / largest, sample_rate, noise_std / largest, order))


def coupled_mean_rule_divergence(coupled: np.ndarray, order: float) -> tuple[float, float]:
    """Return a bound on the Rényi divergence of one step that joins the point to the very batch it is compared with.

    D_a <= 1/(a-1) ln E_B exp( (a-1) D_a(P_B || Q_B) ): P = E_B P_B and Q = E_B Q_B, with P_B = (1-q) Q_B + q N(u(B
    with x)), and exp((a-1) D_a) is jointly convex (docs/renyi_composition.md). The batches' own scatter cancels, which
    theorem 3.6 of arXiv 2307.00310 pays for.

    Args:
        coupled: D_a(P_B || Q_B), nats, of sampled batches, shape (T,).
        order: a > 1.

    Returns:
        The estimate and its standard error over the T batches (delta method), nats.
    """
    largest = coupled.max()
    excess = np.exp((order - 1) * (coupled - largest))
    value = largest + math.log(excess.mean()) / (order - 1)
    spread = excess.std(ddof=1) / math.sqrt(len(coupled)) if len(coupled) > 1 else math.nan
    return float(value), float(spread / excess.mean() / (order - 1))


def same_inner_products(vectors: np.ndarray) -> np.ndarray:
    """Return n vectors with the inner products of the given ones and at most n coordinates, shape (n, n).

    Args:
        vectors: Shape (n, d), of any d.
    """
    wide = np.asarray(vectors, dtype=np.float64)
    values, basis = np.linalg.eigh(wide @ wide.T)
    return basis * np.sqrt(np.maximum(values, 0))


def gaussian_epsilon(noise_to_sensitivity: np.ndarray, delta: float) -> np.ndarray:
    """Return the exact epsilon at delta of the Gaussian mechanism, for both directions.

    The least epsilon >= 0 with Phi(1/(2z) - epsilon z) - e^epsilon Phi(-1/(2z) - epsilon z) <= delta, z = noise
    standard deviation over sensitivity: theorem 8 of Balle and Wang 2018, arXiv 1805.06530v2. The classical
    sqrt(2 ln(1.25/delta))/z is proved for epsilon < 1 only: above the truth at z = 1, below it at z = 0.3.

    Args:
        noise_to_sensitivity: z > 0, infinity where the sensitivity is 0; any shape.
        delta: Above 0; 1 or more gives epsilon = 0.

    Returns:
        epsilon, same shape, from above to within 1e-12 of its size.
    """
    z = np.asarray(noise_to_sensitivity, dtype=np.float64)
    if not (delta > 0 and np.all(z > 0)):
        raise ValueError("delta and noise_to_sensitivity must be positive")
    if delta >= 1:
        return np.zeros_like(z)
    shift = 1 / z

    def delta_at(epsilon: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore", invalid="ignore"):
            scaled = np.where(shift > 0, epsilon / shift, math.inf)
        return special.ndtr(shift / 2 - scaled) - np.exp(epsilon + special.log_ndtr(-shift / 2 - scaled))

    low, high = np.zeros_like(z), shift**2 / 2 + shift * math.sqrt(2 * math.log(1 / delta))
    for _ in range(60):
        middle = (low + high) / 2
        enough = delta_at(middle) <= delta
        low, high = np.where(enough, low, middle), np.where(enough, middle, high)
    return np.where(delta_at(np.zeros_like(z)) <= delta, 0.0, high)


def sum_rule_epsilon(sensitivity: np.ndarray, sample_rate: float, noise_multiplier: float, delta: float) -> np.ndarray:
    """Return the exact epsilon of one step of the sum rule, where the batch does not change the sensitivity.

    epsilon = ln(1 + q (e^epsilon_0 - 1)), epsilon_0 the Gaussian mechanism's at delta/q: amplification by Poisson
    sampling (Balle, Barthe, Gaboardi 2018, arXiv 1807.01647), from training with the point to training without it.

    Args:
        sensitivity: s = min(||g||, C)/C, any shape, >= 0.
        sample_rate: q in (0, 1].
        noise_multiplier: sigma > 0.
        delta: In (0, 1).

    Returns:
        epsilon, same shape as sensitivity.
    """
    s = np.asarray(sensitivity, dtype=np.float64)
    _check_step(s, sample_rate, noise_multiplier, delta)
    with np.errstate(divide="ignore"):
        inner = gaussian_epsilon(noise_multiplier / s, delta / sample_rate)
    return inner + np.log1p((1 - sample_rate) * np.expm1(-inner))  # the same, and finite where e^inner is not


def one_step_epsilon(
    sensitivity: np.ndarray, sample_rate: float, noise_multiplier: float, delta: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return epsilon of one step at delta, from the point's sensitivity in sampled batches.

    With epsilon_B the Gaussian mechanism's at delta/(2q) for batch B and A = (E_B e^(p epsilon_B))^(1/p),

        epsilon = ln( 1 - q + (q A)^(p/(p-1)) (delta/2)^(-1/(p-1)) ),

    as in the code beside arXiv 2307.00310, at the p that makes it least; p = infinity gives
    ln(1 - q + q max_B e^epsilon_B) with epsilon_B at delta/q. The published code fixes p = 1e4 and takes the
    classical epsilon_B.

    Args:
        sensitivity: ||u(B with x) - u(B)|| in units of C (sum) or C/B (mean) for n batches, shape (n, P), >= 0.
        sample_rate: q in (0, 1].
        noise_multiplier: sigma > 0, noise standard deviation in the same unit.
        delta: In (0, 1).

    Returns:
        epsilon and p, each of shape (P,). An estimate where n batches stand for all.
    """
    s = np.asarray(sensitivity, dtype=np.float64)
    if s.ndim != 2 or s.shape[0] == 0:
        raise ValueError(f"expected sensitivities of shape (batches, points), got shape {s.shape}")
    _check_step(s, sample_rate, noise_multiplier, delta)
    with np.errstate(divide="ignore"):
        z = noise_multiplier / s
    log_rate = math.log(sample_rate)
    at_half = gaussian_epsilon(z, delta / (2 * sample_rate))
    best, best_exponent = np.full(s.shape[1], math.inf), np.full(s.shape[1], math.inf)
    for p in _HOLDER_EXPONENTS.tolist():
        if p == math.inf:
            log_term = log_rate + gaussian_epsilon(z, delta / sample_rate).max(axis=0)
        else:
            log_a = (special.logsumexp(p * at_half, axis=0) - math.log(s.shape[0])) / p
            log_term = (p * (log_rate + log_a) - math.log(delta / 2)) / (p - 1)
        with np.errstate(divide="ignore"):
            value = np.maximum(np.logaddexp(np.log1p(-sample_rate), log_term), 0.0)
        better = value < best
        best[better], best_exponent[better] = value[better], p
    return best, best_exponent


def _check_step(s: np.ndarray, sample_rate: float, noise_multiplier: float, delta: float) -> None:
    if not np.all(s >= 0):
        raise ValueError("sensitivities must be non-negative")
    if not (0 < sample_rate <= 1 and noise_multiplier > 0 and 0 < delta < 1):
        raise ValueError(f"out of range: sample_rate {sample_rate}, noise_multiplier {noise_multiplier}, delta {delta}")
