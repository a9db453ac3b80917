"""Link 2 as tables: what its script and its notebook show and keep."""

from __future__ import annotations

import pandas as pd

from libscores.link2 import MEMBERS, CurvatureByGroup, CurveFit, Trend, trend
from libscores.verdicts import NO_CLAIM, REFERENCE, Verdict, fits, rises
from libstore.results import ResultRow

STUDY = "Link 2"


def fit_verdict(fit: CurveFit) -> Verdict:
    """Say whether the means lie on the curve."""
    return fits(fit.p_lack_of_fit, fit.largest_misfit, fit.n_values, len(fit.parameters))


def fit_words(fit: CurveFit) -> str:
    """Say how good a fit is, in a line."""
    size = f"{len(fit.parameters)} parameters on {fit.n_values} values of epsilon"
    return f"R2 = {fit.r_squared:.4f}, lack of fit p = {fit.p_lack_of_fit:.2g}, {size}"


def fit_row(formula: str, fit: CurveFit) -> ResultRow:
    """Return the row of a fit."""
    p = f"lack of fit p = {fit.p_lack_of_fit:.2g}, {len(fit.parameters)} parameters on {fit.n_values} values"
    return ResultRow(STUDY, f"R2 of {formula}; {p}", fit.r_squared, None, None, "fits", fit_verdict(fit))


def trend_rows(value: str, moves: Trend, claim: str, verdict: str) -> list[ResultRow]:
    """Return the rows of a trend: the slope with its verdict, the rank correlation, and shuffled models."""
    slope, test = moves.slope, moves.spearman
    return [
        ResultRow(STUDY, f"slope of ln {value} on ln epsilon", slope.value, slope.low, slope.high, claim, verdict),
        ResultRow(STUDY, f"Spearman(epsilon, {value})", test.value, None, None, "", NO_CLAIM),
        ResultRow(
            STUDY, f"reference: models shuffled, {value}", test.null, test.null_low, test.null_high, "", REFERENCE
        ),
    ]


def trends(curvature: CurvatureByGroup) -> dict[str, dict[str, Trend]]:
    """Return how every statistic of every group moves with epsilon."""
    return {
        group: {statistic: trend(curvature.epsilons, table) for statistic, table in tables.items()}
        for group, tables in curvature.tables.items()
    }


def trends_table(curvature: CurvatureByGroup, moves: dict[str, dict[str, Trend]]) -> pd.DataFrame:
    """Return slopes, rank correlations and shares of examples that rise: a column for each group."""
    columns = {}
    for group, by_statistic in moves.items():
        column = {f"slope, {statistic}": f"{one.slope:.3f}" for statistic, one in by_statistic.items()}
        column |= {f"Spearman, {statistic}": f"{one.spearman.value:.3f}" for statistic, one in by_statistic.items()}
        column["share of examples that rise"] = f"{curvature.rising[group]:.3f}"
        columns[group] = column
    return pd.DataFrame(columns)


def curvature_rows(
    curvature: CurvatureByGroup, moves: dict[str, dict[str, Trend]], fit: CurveFit | None
) -> list[ResultRow]:
    """Return the rows that are kept; the claim is about training examples, so its verdict is the members'."""
    claim, own = "rises (Sec. 5.2)", moves[MEMBERS]["mean"]
    rows = trend_rows(f"mean curvature, {MEMBERS}", own, claim, rises(own.slope))
    for group, by_statistic in moves.items():
        for statistic, one in by_statistic.items():
            if (group, statistic) != (MEMBERS, "mean"):
                rows.append(trend_rows(f"{statistic} curvature, {group}", one, "", NO_CLAIM)[0])
        share = curvature.rising[group]
        label = f"share of examples whose curvature rises, {group}"
        rows.append(ResultRow(STUDY, label, share.value, share.low, share.high, "", NO_CLAIM))
    if fit:
        rows.append(fit_row(f"the curvature fit, {MEMBERS}", fit))
    return rows
