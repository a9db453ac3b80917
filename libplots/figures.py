"""Figures that scripts and notebooks share."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from libscores.link1 import Link1
from libscores.link2 import CurveFit
from libscores.link3 import PrivateMemorization, pure_bound, total_variation_bound
from libscores.statistics import Estimate


def draw_estimates(axis: Axes, x: np.ndarray, estimates: Sequence[Estimate], **style: object) -> None:
    """Draw points with their 95 % intervals."""
    values = np.array([[e.value, e.low, e.high] for e in estimates])
    bars = np.nan_to_num(np.abs(values[:, 1:] - values[:, :1]).T)
    axis.errorbar(x, values[:, 0], yerr=bars, fmt="o", capsize=3, **style)  # type: ignore[arg-type]


def draw_bands(axis: Axes, x: np.ndarray, values: np.ndarray, label: str) -> None:
    """Draw median, quarters and 5 to 95 % over points of values (S, P), on a logarithmic axis."""
    low, first_quarter, middle, last_quarter, high = np.percentile(values, [5, 25, 50, 75, 95], axis=1)
    axis.fill_between(x, low, high, color="tab:blue", alpha=0.15, lw=0, label="5 to 95 %")
    axis.fill_between(x, first_quarter, last_quarter, color="tab:blue", alpha=0.3, lw=0, label="25 to 75 %")
    axis.plot(x, middle, color="tab:blue", label="median")
    axis.set(ylabel=label, yscale="log")


def draw_examples(panel: SubFigure, title: str, inputs: np.ndarray, captions: Sequence[str], columns: int = 10) -> None:
    """Draw examples with a caption above each: images as such, other inputs (N, ...) as a line through their values."""
    panel.suptitle(title)
    grid = panel.subplots(-(-len(inputs) // columns), columns, squeeze=False)
    for axis in grid.flat:
        axis.set(xticks=[], yticks=[])
        axis.set_visible(False)
    for axis, one, caption in zip(grid.flat, inputs, captions, strict=False):
        axis.set_visible(True)
        axis.set_title(caption, fontsize=8)
        if one.ndim == 3 and one.shape[0] in (1, 3):
            axis.imshow(one.transpose(1, 2, 0).squeeze(), cmap="gray_r" if one.shape[0] == 1 else None)
        else:
            axis.plot(one.reshape(-1), lw=0.8)


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


def score_against_memorization(title: str, result: Link1, score: str = "curvature") -> Figure:
    """Draw Link 1: the score in bins of memorization with straight line and subpopulation fit, and every example."""
    curve = result.curve
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.6), layout="constrained")
    left.errorbar(
        curve.memorization, curve.curvature, yerr=1.96 * np.nan_to_num(curve.standard_error),
        fmt="none", ecolor="tab:gray", elinewidth=0.8, capsize=1.5, zorder=1,
    )  # fmt: skip
    sizes = 8 + 12 * np.log2(curve.count)
    left.scatter(curve.memorization, curve.curvature, s=sizes, color="tab:blue", zorder=2, label="bin mean")
    grid = np.array([0.0, 1.0])
    line = result.intercept.value + result.slope.value * grid
    left.plot(grid, line, color="tab:orange", label="straight line, all examples")
    left.plot(
        curve.memorization, result.subpopulation.predict(curve), color="tab:green", lw=1,
        label=r"$a\,\mathrm{mem}\sqrt{\mathrm{count}} + b\,\mathrm{count}$",
    )  # fmt: skip
    left.set(xlabel="memorization score", ylabel=f"{score}, mean over the models that hold the example", ylim=(0, None))
    left.legend(frameon=False)
    defined = np.isfinite(result.memorization)
    right.scatter(
        result.memorization[defined], result.curvature[defined], s=5, alpha=0.4, color="tab:blue", edgecolors="none"
    )
    right.set(xlabel="memorization score", ylabel=f"{score} (log scale)", yscale="log")
    right.set_title(f"one point per example; Spearman {result.similarity['Spearman']}", fontsize=10)
    figure.suptitle(title)
    return figure
