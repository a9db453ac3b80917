"""Figures of the score atlas: how the columns of a score table agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from libscores.atlas import Budget
from libstore.score_columns import LESS

MAIN = (
    "memorization_prob", "memorization_correctness", "consistency_prob", "lira_shared", "rmia", "influence_largest",
    "curvature", "trace", "loss", "margin", "el2n", "grand", "input_gradient_norm", "forgetting_events",
    "first_learned_epoch", "csl", "csg", "lt_iqr", "vog", "epsilon_sensitivity",
)  # fmt: skip
"""Scores that the atlas shows where a table has them; private ones of the largest epsilon, too."""
_PRIVATE = ("private_memorization_eps_", "private_loss_eps_", "private_curvature_eps_")


def main_scores(about: Mapping[str, Any]) -> list[str]:
    """Return the names of the scores that the atlas shows by default, from a table's description."""
    found = [name for name in MAIN if name in about["columns"]]
    for start in _PRIVATE:
        epsilons = [float(name.removeprefix(start)) for name in about["columns"] if name.startswith(start)]
        found += [f"{start}{max(epsilons):g}"] if epsilons else []
    return found + [name for name in about["columns"] if name.startswith("instance_epsilon_realised")]


def oriented(table: pd.DataFrame, about: Mapping[str, Any], names: Sequence[str]) -> np.ndarray:
    """Return columns as rows, (K, N), turned so that more means more exposed where that is known."""
    return np.stack([table[name].to_numpy() * sign(about, name) for name in names])


def sign(about: Mapping[str, Any], name: str) -> float:
    """Return -1 for a score that falls where exposure rises."""
    return -1.0 if about["columns"][name]["direction"] == LESS else 1.0


def draw_matrix(title: str, names: Sequence[str], value: np.ndarray, order: np.ndarray) -> Figure:
    """Draw correlations of scores, (K, K), in an order, with their numbers."""
    k = len(names)
    figure, axis = plt.subplots(figsize=(2.5 + 0.5 * k, 2 + 0.5 * k), layout="constrained")
    shown = value[np.ix_(order, order)]
    image = axis.imshow(shown, cmap="PuOr_r", vmin=-1, vmax=1)
    for row, column in zip(*np.nonzero(np.isfinite(shown)), strict=True):
        number = shown[row, column]
        colour = "white" if abs(number) > 0.7 else "black"
        axis.text(column, row, f"{number:.2f}".replace("0.", "."), ha="center", va="center", fontsize=7, color=colour)
    labels = [names[i] for i in order]
    axis.set_xticks(range(k), labels, rotation=90, fontsize=8)
    axis.set_yticks(range(k), labels, fontsize=8)
    figure.colorbar(image, ax=axis, shrink=0.6, label="Spearman's correlation")
    axis.set_title(title, fontsize=10)
    return figure


def draw_budgets(title: str, budgets: Mapping[str, Budget], seconds: Mapping[str, float], target: str) -> Figure:
    """Draw how well each score ranks as the target does, against the seconds of the networks it was taken from."""
    figure, axes = plt.subplots(1, 2, figsize=(13, 5), layout="constrained")
    colours, markers = plt.get_cmap("tab20").colors, "osD^v<>phX*P"  # type: ignore[attr-defined]
    for number, (name, one) in enumerate(budgets.items()):
        style = {"color": colours[(2 * number + number // 10) % 20], "marker": markers[number % len(markers)], "ms": 5}
        for axis, estimates in zip(axes, (one.correlation, one.top), strict=True):
            values = np.array([[e.value, e.low, e.high] for e in estimates])
            known = np.isfinite(values[:, 0])
            x = np.array(one.sizes)[known] * seconds[name]
            axis.plot(x, values[known, 0], label=name, **style)
            axis.fill_between(x, values[known, 1], values[known, 2], color=style["color"], alpha=0.12, lw=0)
    for axis, what in zip(axes, ("Spearman's correlation with", "share of the top 5 % of"), strict=True):
        axis.set(xscale="log", xlabel="seconds of training and scoring", ylabel=f"{what} {target}, other networks")
    axes[1].legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.suptitle(title, fontsize=10)
    return figure


def draw_curves(title: str, curves: Mapping[str, np.ndarray]) -> Figure:
    """Draw the attacks' curves on logarithmic axes, from the arrays that are kept beside a table."""
    figure, axis = plt.subplots(figsize=(5.2, 4.6), layout="constrained")
    for name in sorted(key.removesuffix("_true_positives") for key in curves if key.endswith("_true_positives")):
        axis.plot(curves[f"{name}_false_positives"], curves[f"{name}_true_positives"], label=name)
    axis.plot([1e-5, 1], [1e-5, 1], ":", color="tab:gray", lw=1, label="chance")
    axis.set(
        xscale="log", yscale="log", xlim=(1e-4, 1), ylim=(1e-4, 1), xlabel="rate of false positives",
        ylabel="rate of true positives", title=title,
    )  # fmt: skip
    axis.legend(frameon=False)
    return figure
