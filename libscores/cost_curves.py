"""Cost curves from fewer checkpoints: every third is measured, the rest is predicted.

A cost curve is a point's privacy cost (or gradient norm) at every checkpoint of a run. The first three methods are
those of the published study, `pchip` keeps the shape of the measured values and is smooth.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.interpolate import PchipInterpolator

from libscores.statistics import NOT_NEGATIVE, Estimate, bootstrap_interval, bootstrap_weights, spearman

METHODS = ("linear", "offset", "neural_network", "pchip")


def linear(steps: np.ndarray, measured: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Interpolate linearly in the step between measured checkpoints, constant outside them.

    Args:
        steps: Step of every checkpoint, shape (S,), increasing.
        measured: Costs at the kept checkpoints, shape (K, P).
        kept: Positions of the kept checkpoints among `steps`, shape (K,), increasing.

    Returns:
        Costs at every checkpoint, shape (S, P).
    """
    _check(steps, measured, kept)
    return _hat(steps, kept) @ measured


def offset(steps: np.ndarray, curves: np.ndarray, every: int = 3) -> np.ndarray:
    """Average the linear interpolations that start at the 1st, 2nd, ... checkpoint.

    With several runs the offsets take turns, so that each run is measured at every third checkpoint only; with one run
    all its checkpoints are used and none is saved.

    Args:
        steps: Step of every checkpoint, shape (S,), increasing.
        curves: Costs of each run, shape (R, S, P); run r is read at checkpoints o, o + every, ..., o = r mod every.
        every: Number of offsets, at most S.

    Returns:
        The approximate mean curve, shape (S, P).
    """
    runs = len(curves)
    offsets = [(run, run % every) for run in range(runs)] if runs >= every else [
        (run, start) for run in range(runs) for start in range(every)
    ]  # fmt: skip
    parts = []
    for run, start in offsets:
        kept = np.arange(start, steps.size, every)
        parts.append(linear(steps, curves[run][kept], kept))
    return np.mean(parts, axis=0)


def pchip(steps: np.ndarray, measured: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Interpolate with monotone cubics (PCHIP; Fritsch and Butland 1984), constant outside the measured checkpoints.

    Each gap follows the slope of its neighbours yet stays between its two ends, so costs never turn negative.

    Args:
        steps: Step of every checkpoint, shape (S,), increasing.
        measured: Costs at the kept checkpoints, shape (K, P), K >= 2.
        kept: Positions of the kept checkpoints among `steps`, shape (K,), increasing.

    Returns:
        Costs at every checkpoint, shape (S, P).
    """
    _check(steps, measured, kept)
    nodes = np.asarray(steps, dtype=np.float64)[kept]
    return PchipInterpolator(nodes, measured, axis=0)(np.clip(steps, nodes[0], nodes[-1]))


def neural_network(
    steps: np.ndarray, measured: np.ndarray, kept: np.ndarray, seed: int = 0, hidden: int = 64, epochs: int = 500
) -> np.ndarray:
    """Fit one small network from the step to the costs of all points and read it at every checkpoint.

    Two hidden tanh layers, one output per point; inputs and each point's costs standardised; AdamW, weight
    decay 1e-3, rate 0.01 falling to 0, full batch, double precision on the CPU: equal seeds give equal results.

    Args:
        steps: Step of every checkpoint, shape (S,), increasing.
        measured: Costs at the kept checkpoints, shape (K, P).
        kept: Positions of the kept checkpoints among `steps`, shape (K,), increasing.
        seed: Seed of the initial weights.
        hidden: Units of a hidden layer.
        epochs: Gradient steps.

    Returns:
        Costs at every checkpoint, shape (S, P), cut off at 0.
    """
    import torch

    _check(steps, measured, kept)
    center, spread = measured.mean(axis=0), measured.std(axis=0)
    target = torch.from_numpy((measured - center) / np.where(spread > 0, spread, 1.0))
    time = torch.from_numpy(2 * (steps - steps[0]) / (steps[-1] - steps[0]) - 1.0)[:, None]
    generator = torch.Generator().manual_seed(seed)
    sizes = [1, hidden, hidden, measured.shape[1]]
    weights = [
        torch.randn((a, b), generator=generator, dtype=torch.float64) * scale / a**0.5
        for a, b, scale in zip(sizes[:-1], sizes[1:], (3.0, 1.0, 0.1), strict=True)
    ]
    biases = [torch.randn(b, generator=generator, dtype=torch.float64) for b in sizes[1:-1]]
    biases.append(torch.zeros(sizes[-1], dtype=torch.float64))
    parameters = [tensor.requires_grad_() for tensor in (*weights, *biases)]

    def predict(x: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(x @ weights[0] + biases[0])
        x = torch.tanh(x @ weights[1] + biases[1])
        return x @ weights[2] + biases[2]

    optimizer = torch.optim.AdamW(parameters, lr=0.01, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    at_kept = time[torch.from_numpy(np.asarray(kept))]
    for _ in range(epochs):
        optimizer.zero_grad()
        torch.square(predict(at_kept) - target).mean().backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        return np.maximum(predict(time).numpy() * spread + center, 0.0)


class CurveErrors(NamedTuple):
    """How well a method replaces the full measurement of the mean curve over runs."""

    unused_error: float
    """Mean absolute error at the checkpoints outside every third, over the mean cost there."""
    total_error: float
    """Median over points of |predicted total - total| / total."""
    total_bias: float
    """Sum of predicted totals over sum of totals, minus 1."""
    spearman: float
    """Rank correlation of the predicted totals with the totals."""
    saved: float
    """Share of the checkpoints that need not be measured."""


def evaluate(
    steps: np.ndarray, curves: np.ndarray, step_weights: np.ndarray, every: int = 3, seed: int = 0
) -> dict[str, tuple[np.ndarray, CurveErrors]]:
    """Compare the methods on fully measured curves.

    Args:
        steps: Step of every checkpoint, shape (S,), increasing.
        curves: Costs of each run, shape (R, S, P), non-negative.
        step_weights: Steps that each checkpoint stands for in the total, shape (S,).
        every: Every how many checkpoints one is measured.
        seed: Seed of the neural network.

    Returns:
        For each of `METHODS`, the predicted mean curve (S, P) and its errors. All but "offset" read checkpoints 0,
        every, 2 every, ... of each run; "offset" reads as many, with the offset changing from run to run.
    """
    if steps.size < 3 * every - 2:
        raise ValueError(f"needs at least {3 * every - 2} checkpoints, got {steps.size}")
    truth = curves.mean(axis=0)
    kept = np.arange(0, steps.size, every)
    unused = np.setdiff1d(np.arange(steps.size), kept)
    measured = truth[kept]
    predictions = {
        "linear": linear(steps, measured, kept),
        "offset": offset(steps, curves, every),
        "neural_network": neural_network(steps, measured, kept, seed),
        "pchip": pchip(steps, measured, kept),
    }
    total = step_weights @ truth
    result = {}
    for method, predicted in predictions.items():
        predicted_total = step_weights @ predicted
        with np.errstate(divide="ignore", invalid="ignore"):
            relative = np.abs(predicted_total - total) / total
        needs_all = method == "offset" and len(curves) < every
        result[method] = (
            predicted,
            CurveErrors(
                unused_error=float(np.abs(predicted - truth)[unused].mean() / truth[unused].mean()),
                total_error=float(np.nanmedian(relative)),
                total_bias=float(predicted_total.sum() / total.sum() - 1),
                spearman=spearman(predicted_total, total),
                saved=0.0 if needs_all else 1 - kept.size / steps.size,
            ),
        )
    return result


def unused_error_interval(
    predicted: np.ndarray, truth: np.ndarray, every: int = 3, n_resamples: int = 200, seed: int = 0
) -> Estimate:
    """Return `CurveErrors.unused_error` with an interval from a bootstrap over points.

    Args:
        predicted: The predicted mean curve, shape (S, P).
        truth: The measured one, shape (S, P).
        every: Every how many checkpoints one was measured.
        n_resamples: Bootstrap resamples of the points.
        seed: Seed of the resampling.
    """
    unused = np.arange(len(truth)) % every > 0
    missed, size = (part[unused].mean(axis=0) for part in (np.abs(predicted - truth), truth))
    draws = bootstrap_weights(missed.size, n_resamples, seed)
    resampled = (draws @ missed) / (draws @ size)
    return bootstrap_interval(float(missed.sum() / size.sum()), resampled, missed.size, NOT_NEGATIVE)


def _hat(steps: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Return the matrix (S, K) of linear interpolation from the kept checkpoints to all of them."""
    return np.stack([np.interp(steps, steps[kept], row) for row in np.eye(kept.size)], axis=1)


def _check(steps: np.ndarray, measured: np.ndarray, kept: np.ndarray) -> None:
    if kept.size == 0 or np.any(np.diff(steps) <= 0) or np.any(np.diff(kept) <= 0) or measured.shape[:1] != kept.shape:
        raise ValueError(
            f"expected increasing steps and positions and a row each, got {steps.shape}, {kept.shape}, {measured.shape}"
        )
