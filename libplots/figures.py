"""Figures that scripts and notebooks share."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from libscores.link2 import CurveFit
from libscores.link3 import PrivateMemorization, pure_bound, total_variation_bound
from libscores.statistics import Estimate


def draw_estimates(axis: Axes, x: np.ndarray, estimates: Sequence[Estimate], **style: object) -> None:
    """Draw points with their 95 % intervals."""
    values = np.array([[e.value, e.low, e.high] for e in estimates])
    bars = np.nan_to_num(np.abs(values[:, 1:] - values[:, :1]).T)
    axis.errorbar(x, values[:, 0], yerr=bars, fmt="o", capsize=3, **style)  # type: ignore[arg-type]


def draw_fit(axis: Axes, epsilons: np.ndarray, fit: CurveFit, formula: str) -> None:
    """Draw a fitted curve with its parameters in the legend."""
    grid = np.geomspace(epsilons.min(), epsilons.max(), 300)
    parameters = ", ".join(f"{name} = {estimate.value:.3g}" for name, estimate in fit.parameters.items())
    label = f"{formula}\n{parameters}, $R^2$ = {fit.r_squared:.3f}"
    axis.plot(grid, fit(grid), color="tab:orange", label=label)


def loss_against_epsilon(
    title: str, epsilons: np.ndarray, losses: np.ndarray, means: Sequence[Estimate], fit: CurveFit | None
) -> Figure:
    """Draw test loss against epsilon: every model, means over seeds with intervals, the fit."""
    figure, axis = plt.subplots(figsize=(6.4, 4.4), layout="constrained")
    single = np.broadcast_to(epsilons[:, None], losses.shape)
    axis.scatter(single, losses, s=8, color="tab:gray", alpha=0.6, label="one model")
    draw_estimates(axis, epsilons, means, color="tab:blue", label="mean over seeds, 95 % interval")
    if fit:
        draw_fit(axis, epsilons, fit, r"$a + b\,e^{-c\,\epsilon}$")
    axis.set(xlabel=r"privacy budget $\epsilon$", ylabel="test loss (cross-entropy, nats)", title=title)
    axis.legend(frameon=False)
    return figure


def memorization_against_epsilon(
    title: str, epsilons: np.ndarray, results: Sequence[PrivateMemorization], delta: float
) -> Figure:
    """Draw mean memorization against epsilon on a logarithmic axis, with the control and both bounds."""
    figure, axis = plt.subplots(figsize=(6.4, 4.4), layout="constrained")
    grid = np.geomspace(min(0.1, epsilons.min()), epsilons.max() * 1.2, 300)
    axis.plot(grid, pure_bound(grid), color="tab:red", label=r"bound $1 - e^{-\epsilon}$ (paper)")
    axis.plot(grid, total_variation_bound(grid, delta), "--", color="tab:red", label="total variation bound (tighter)")
    draw_estimates(axis, epsilons, [r.mean for r in results], color="tab:blue", label="memorization, 95 % interval")
    control = [r.shuffled for r in results]
    draw_estimates(axis, epsilons * 1.04, control, color="tab:gray", label="control: membership shuffled", markersize=4)
    axis.axhline(0, color="black", lw=0.5)
    axis.set(xscale="log", xlabel=r"privacy budget $\epsilon$", ylabel="mean memorization of the top k", title=title)
    axis.legend(frameon=False)
    return figure
