"""Figures that scripts and notebooks share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from libscores.link1 import Link1
from libscores.link2 import MEMBERS, CurvatureByGroup, CurveFit, seed_means
from libscores.link3 import PrivateMemorization, pure_bound, total_variation_bound
from libscores.statistics import NOT_NEGATIVE, Estimate


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


def draw_fit(axis: Axes, epsilons: np.ndarray, fit: CurveFit, formula: str) -> None:
    """Draw a fitted curve with its parameters in the legend."""
    grid = np.geomspace(epsilons.min(), epsilons.max(), 300)
    parameters = ", ".join(f"{name} = {estimate.value:.3g}" for name, estimate in fit.parameters.items())
    test = f"$R^2$ = {fit.r_squared:.3f}, lack of fit p = {fit.p_lack_of_fit:.2g}"
    label = f"{formula}\n{parameters}\n{test}; {len(fit.parameters)} parameters on {fit.n_values} values"
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


def curvature_against_epsilon(
    title: str, curvature: CurvatureByGroup, fit: CurveFit | None, statistic: str = "mean"
) -> Figure:
    """Draw a statistic of curvature against epsilon: members with every model and the fit, then the other groups."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 5.4), layout="constrained")
    for group, tables in curvature.tables.items():
        table, axis = tables[statistic], left if group == MEMBERS else right
        known = np.isfinite(table).any(axis=1)
        means = seed_means(table[known], NOT_NEGATIVE)
        draw_estimates(axis, curvature.epsilons[known], means, label=f"{group}: mean over seeds, 95 % interval")
        if group == MEMBERS:
            single = np.broadcast_to(curvature.epsilons[:, None], table.shape)
            axis.scatter(single, table, s=8, color="tab:gray", alpha=0.6, label="one model")
    if fit:
        draw_fit(left, curvature.epsilons, fit, r"$(a + b\,e^{-c\,\epsilon})(1 - e^{-\epsilon}) + e$")
    for axis in (left, right):
        axis.set(xlabel=r"privacy budget $\epsilon$", ylabel=f"curvature, {statistic} over examples")
        axis.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.12))
    figure.suptitle(title)
    return figure


def memorization_against_epsilon(
    title: str, epsilons: np.ndarray, results: Sequence[PrivateMemorization], delta: float, bounds: np.ndarray
) -> Figure:
    """Draw mean memorization against epsilon on a logarithmic axis, with the control and all bounds.

    Args:
        title: Above everything.
        epsilons: (E,).
        results: E of them.
        delta: Of the trainings.
        bounds: Total variation of the trainings that were run, (E,).
    """
    figure, axis = plt.subplots(figsize=(6.4, 5.6), layout="constrained")
    grid = np.geomspace(min(0.1, epsilons.min()), epsilons.max() * 1.2, 300)
    axis.plot(grid, pure_bound(grid), color="tab:red", label=r"bound $1 - e^{-\epsilon}$ (paper)")
    axis.plot(
        grid,
        total_variation_bound(grid, delta),
        "--",
        color="tab:red",
        label=r"total variation of any $(\epsilon, \delta)$",
    )
    axis.plot(epsilons, bounds, "o:", color="tab:red", markersize=4, label="total variation of the training run")
    draw_estimates(axis, epsilons, [r.mean for r in results], color="tab:blue", label="memorization, 95 % interval")
    control = [r.shuffled for r in results]
    draw_estimates(axis, epsilons * 1.04, control, color="tab:gray", label="control: membership shuffled", markersize=4)
    axis.axhline(0, color="black", lw=0.5)
    axis.set(xscale="log", xlabel=r"privacy budget $\epsilon$", ylabel="mean memorization of the top k", title=title)
    axis.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2)
    return figure


def score_against_memorization(title: str, result: Link1, score: str = "curvature", *, many: bool = False) -> Figure:
    """Draw Link 1: the score, and the loss if it is known, in bins of memorization and over single examples.

    Args:
        title: Above everything.
        result: What is drawn.
        score: What the score is, if not curvature.
        many: Draw how many examples lie where in place of a point for each.
    """
    n = len(result.links)
    figure, axes = plt.subplots(n, 2, figsize=(12, 4.6 * n), layout="constrained", squeeze=False)
    for (key, link), (left, right) in zip(result.links.items(), axes, strict=True):
        name, curve = score if key == "curvature" else key, link.curve
        left.errorbar(
            curve.memorization, curve.curvature, yerr=1.96 * np.nan_to_num(curve.standard_error),
            fmt="none", ecolor="tab:gray", elinewidth=0.8, capsize=1.5, zorder=1,
        )  # fmt: skip
        sizes = 8 + 12 * np.log2(curve.count)
        left.scatter(curve.memorization, curve.curvature, s=sizes, color="tab:blue", zorder=2, label="bin mean")
        if key == "curvature":
            grid = np.array([0.0, 1.0])
            line = result.intercept.value + result.slope.value * grid
            left.plot(grid, line, color="tab:orange", label="straight line, all examples")
            left.plot(
                curve.memorization, result.subpopulation.predict(curve), color="tab:green", lw=1,
                label=r"$a\,\mathrm{mem}\sqrt{\mathrm{count}} + b\,\mathrm{count}$",
            )  # fmt: skip
        left.set(xlabel="memorization score", ylabel=f"{name}, mean over the models that hold the example")
        left.set_ylim(-0.04 * left.get_ylim()[1], None)  # below 0 for the half of a marker that stands there
        left.legend(frameon=False)
        shown = np.isfinite(result.memorization) & (link.score > 0)
        mem, values = result.memorization[shown], link.score[shown]
        if many:
            cells = right.hexbin(mem, values, yscale="log", gridsize=50, bins="log", mincnt=1, cmap="Blues")
            figure.colorbar(cells, ax=right, label="examples")
        else:
            right.scatter(mem, values, s=5, alpha=0.4, color="tab:blue", edgecolors="none")
        right.set(xlabel="memorization score", ylabel=f"{name} (log scale)", yscale="log")
        spearman = link.similarity["Spearman"]
        right.set_title(f"{'' if many else 'one point per example; '}Spearman {spearman:.3f}", fontsize=10)
    figure.suptitle(title)
    return figure


def correlation_against_runs(title: str, results: Mapping[str, Link1]) -> Figure:
    """Draw Spearman's correlation with memorization against the number of networks, and what it tends to.

    Args:
        title: Above everything.
        results: By kind of memorization, a panel each.
    """
    figure, axes = plt.subplots(
        1, len(results), figsize=(6 * len(results), 4.4), layout="constrained", squeeze=False, sharey=True
    )
    for axis, (value, result) in zip(axes[0], results.items(), strict=True):
        for (key, link), color in zip(result.links.items(), ("tab:blue", "tab:orange"), strict=False):
            n_runs, estimates = zip(*link.by_runs, strict=True)
            axis.plot(n_runs, [estimate.value for estimate in estimates], color=color, lw=0.8)
            draw_estimates(axis, np.array(n_runs), estimates, color=color, label=f"{key}, 95 % interval")
            if np.isfinite(link.corrected.value):
                axis.axhline(link.corrected.value, color=color, ls="--", lw=0.8, label=f"{key}, corrected for noise")
                axis.axhspan(link.corrected.low, link.corrected.high, color=color, alpha=0.1)
        axis.set(xscale="log", xlabel="networks", ylabel="Spearman with memorization", title=f"memorization: {value}")
        axis.minorticks_off()
        axis.set_xticks(n_runs, labels=map(str, n_runs))
        axis.legend(frameon=False)
    figure.suptitle(title)
    return figure
