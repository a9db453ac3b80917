"""Epsilon of one point by privacy loss distributions: what each run spent, every step with its own sensitivity.

The loss of one step of the sampled Gaussian mechanism is put on a grid by "connect the dots" (Doroshenko et al. 2022,
arXiv 2207.04380): both distributions of a pair are kept, so that the result dominates the mechanism. Steps are
composed as products of Fourier transforms. Sensitivities are rounded up to a grid.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from scipy import fft, special

from libscores.renyi import EPSILON_ORDERS, divergence_at

LEAST_DELTA = 1e-9
"""Below it the rounding of the transforms shows."""
_TAIL = 1e-3
"""Share of delta that the mass beyond the grid may take."""
_RATIO = 1.02
_LEAST = 0.005
_BATCH = 32
_NEGLIGIBLE = -60.0
"""Logarithm of a transform's frequencies that are taken as zero: all of them together are less than their rounding."""


def sensitivity_nodes() -> np.ndarray:
    """Return the sensitivities that others are rounded up to: 0, then 0.005 to 1 in steps of 2 %."""
    count = math.ceil(-math.log(_LEAST) / math.log(_RATIO)) + 1
    return np.append(0.0, np.geomspace(_LEAST, 1.0, count))


def step_loss(
    sensitivity: float, sample_rate: float, noise_multiplier: float, interval: float, reverse: bool = False
) -> tuple[int, np.ndarray]:
    """Return the privacy loss distribution of one step on a grid, from above.

    With r = s/sigma the loss ln(1 - q + q exp(r z - r^2/2)) rises with the outcome z, so the masses of the two
    distributions between two grid points are differences of normal ones; they are split among the two points so that
    both stay what they are.

    Args:
        sensitivity: s in (0, 1].
        sample_rate: q in (0, 1].
        noise_multiplier: sigma > 0.
        interval: Width of a bin, nats.
        reverse: Of training without the point against training with it.

    Returns:
        k and the probabilities of the losses k interval, (k+1) interval, ..., which add up to 1.
    """
    r, q = sensitivity / noise_multiplier, sample_rate
    floor = math.log1p(-q) if q < 1 else -math.inf
    ends = [math.log1p(q * math.expm1(min(r * z - r * r / 2, 700.0))) for z in (-9.0, r + 9.0)]
    low, high = math.floor(max(ends[0], floor) / interval), math.ceil(ends[1] / interval)
    losses = np.arange(low, high + 1) * interval
    with np.errstate(divide="ignore", invalid="ignore"):
        inner = np.log((np.expm1(losses) + q) / q)
        z = np.where(losses > floor, (inner + r * r / 2) / r, -math.inf)
    z[0], z[-1] = -math.inf, math.inf
    base = _normal_masses(z)
    mixed = (1 - q) * base + q * _normal_masses(z - r)
    # To the lower end of each interval, of the mass of the base; its loss keeps the mixture's.
    grow = math.expm1(interval)
    ratio = np.divide(mixed, base * np.exp(losses[:-1]), out=np.ones_like(mixed), where=base > 0)
    up = np.clip((ratio - 1) / grow, 0.0, 1.0) * base
    without = np.append(base - up, 0.0) + np.append(0.0, up)
    chance = without[::-1] if reverse else without * np.exp(losses)
    first = -high if reverse else low
    # Rounding and the ends beyond 9 deviations may leave it a little off 1: what is missing gets the largest loss.
    chance[-1] += max(0.0, 1 - chance.sum())
    return first, chance / chance.sum()


def _normal_masses(z: np.ndarray) -> np.ndarray:
    """Return the standard normal mass between neighbours, from the tail that is smaller."""
    return np.where(z[1:] > 0, -np.diff(special.ndtr(-z)), np.diff(special.ndtr(z)))


def realised_pld_epsilon(
    sensitivity: np.ndarray,
    sample_rate: float,
    noise_multiplier: float,
    delta: float,
    step_weights: np.ndarray | None = None,
    reverse: bool = False,
    interval: float | None = None,
) -> np.ndarray:
    """Return the epsilon at delta that each run spent on each point.

    Args:
        sensitivity: s of each run, step and point, shape (R, S, P), in [0, 1].
        sample_rate: q in (0, 1].
        noise_multiplier: sigma > 0.
        delta: `LEAST_DELTA` <= delta < 1.
        step_weights: Steps that each column stands for, shape (S,); ones if not given. A point's steps are counted
            from the most sensitive on, and rounded up to whole ones.
        reverse: Of training without the point against training with it.
        interval: Width of a bin of the loss; by default one that suits the epsilon of s = 1.

    Returns:
        Epsilon, shape (R, P): at most a few per cent above what exact sensitivities give, never below.

    Raises:
        ValueError: An argument is out of range.
    """
    s = np.asarray(sensitivity, dtype=np.float64)
    if s.ndim != 3 or not (s.size == 0 or (s.min() >= 0 and s.max() <= 1)):
        raise ValueError(f"expected sensitivities in [0, 1], shape (runs, steps, points), got shape {s.shape}")
    if not (0 < sample_rate <= 1 and 0 < noise_multiplier < math.inf):
        raise ValueError(f"out of range: sample_rate {sample_rate}, noise_multiplier {noise_multiplier}")
    if not LEAST_DELTA <= delta < 1:
        raise ValueError(f"delta must be in [{LEAST_DELTA:g}, 1), got {delta}")
    weights = np.ones(s.shape[1]) if step_weights is None else np.asarray(step_weights, dtype=np.float64)
    nodes = sensitivity_nodes()
    counts = _whole_counts(np.searchsorted(nodes, s), weights, nodes.size)
    used = np.flatnonzero(counts.any(axis=(0, 1)) & (nodes > 0))
    if not used.size:
        return np.zeros((s.shape[0], s.shape[2]))

    mechanism = (sample_rate, noise_multiplier)
    top = float(nodes[used[-1]])
    worst = np.array([float(d) for d in divergence_at(np.array(top), *mechanism, EPSILON_ORDERS, reverse)])
    worst *= weights.sum() + 1
    upper = float(np.min(worst - math.log(_TAIL * delta) / (np.array(EPSILON_ORDERS) - 1)))
    lower = -math.log(_TAIL * delta)
    width = interval or 1e-3 * min(1.0, max(0.05, upper / 15)) * max(1.0, upper / 40)
    size = fft.next_fast_len(math.ceil((upper + lower) / width) + 2, real=True)
    logs = [_log_transform(float(nodes[node]), *mechanism, width, reverse, size) for node in used]
    magnitudes, phases = np.stack([log.real for log in logs]), np.stack([log.imag for log in logs])
    result = np.empty(s.shape[0] * s.shape[2])
    flat = counts.reshape(-1, nodes.size)[:, used]
    start = -math.ceil(lower / width)
    losses = np.arange(start, start + size) * width
    turn = np.arange(magnitudes.shape[1]) * (-2j * math.pi * start / size)
    for first in range(0, len(flat), _BATCH):
        part = flat[first : first + _BATCH]
        magnitude = part @ magnitudes
        end = int(np.flatnonzero(magnitude.max(axis=0) > _NEGLIGIBLE)[-1]) + 1
        transform = np.exp(magnitude[:, :end] + 1j * (part @ phases[:, :end]) - turn[:end])
        chance = np.maximum(fft.irfft(transform, size, axis=1), 0.0)
        result[first : first + _BATCH] = [_epsilon(row, losses, (1 - _TAIL) * delta) for row in chance]
    return result.reshape(s.shape[0], s.shape[2])


def _whole_counts(position: np.ndarray, weights: np.ndarray, size: int) -> np.ndarray:
    """Return how many steps fall on each node, shape (R, P, G): whole ones, never fewer at or above any node."""
    runs, _, points = position.shape
    cell = np.arange(runs)[:, None, None] * points + np.arange(points)
    cell = cell * size + position
    each = np.broadcast_to(weights[:, None], position.shape)
    counts = np.bincount(cell.reshape(-1), each.reshape(-1), runs * points * size).reshape(runs, points, size)
    above = np.ceil(np.cumsum(counts[..., ::-1], axis=-1) - 1e-6)
    return np.diff(above, axis=-1, prepend=0.0)[..., ::-1]


@lru_cache(maxsize=1024)
def _log_transform(
    sensitivity: float, sample_rate: float, noise_multiplier: float, interval: float, reverse: bool, size: int
) -> np.ndarray:
    first, chance = step_loss(sensitivity, sample_rate, noise_multiplier, interval, reverse)
    wrapped = np.bincount((first + np.arange(chance.size)) % size, chance, size)
    with np.errstate(divide="ignore"):
        return np.maximum(np.log(fft.rfft(wrapped)), -1e3)


def _epsilon(chance: np.ndarray, losses: np.ndarray, delta: float) -> float:
    """Return the least epsilon >= 0 with sum over l > epsilon of (1 - e^(epsilon - l)) p(l) <= delta."""
    positive = losses > 0
    losses, chance = losses[positive], chance[positive]
    mass, scaled = np.cumsum(chance[::-1])[::-1], np.cumsum((chance * np.exp(-losses))[::-1])[::-1]
    if mass[0] - scaled[0] <= delta:
        return 0.0
    # Delta at each loss; between the losses k - 1 and k the sums from k on decide.
    enough = mass - np.exp(losses) * scaled <= delta
    k = int(np.argmax(enough)) if enough.any() else losses.size - 1
    return math.log((mass[k] - delta) / scaled[k])
