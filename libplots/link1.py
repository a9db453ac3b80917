"""Link 1 as tables: what its notebooks show and keep."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from libscores.link1 import Link1
from libscores.statistics import SIMILARITIES, Estimate
from libscores.verdicts import CONTROL, NO_CLAIM, REFERENCE, SMALL_CORRELATION, rises
from libstore.results import ResultRow

_KINDS = {
    "others": "Spearman, mean over the models without the example",
    "disjoint_halves": "Spearman, disjoint halves of the models",
    "corrected": "Spearman, corrected for noise (estimate)",
    "partial": "Spearman given the other score",
    "auroc": "AUROC for mem > 0.25",
    "reliability": "reliability of the score",
}


def statistics_table(results: Mapping[str, Link1]) -> pd.DataFrame:
    """Return every statistic of curvature and loss, with its interval: a column for each kind of memorization."""
    columns = {}
    for value, result in results.items():
        for name, link in result.links.items():
            column = {f"{kind}, mean over models": f"{one:.3f}" for kind, one in link.similarity.items()}
            for kind in SIMILARITIES:
                column[f"{kind}, random pairs (reference)"] = f"{link.random_pairs[kind].random_pairs:.3f}"
            column |= {said: _text(getattr(link, key)) for key, said in _KINDS.items()}
            if name == "curvature":
                column |= {f"{kind}, maximum over models": f"{one:.3f}" for kind, one in result.similarity_max.items()}
                column["line: slope"], column["line: intercept"] = f"{result.slope:.4g}", f"{result.intercept:.4g}"
                column["a mem sqrt(count) + b count: a"] = f"{result.subpopulation_a:.4g}"
                column["a mem sqrt(count) + b count: b"] = f"{result.subpopulation_b:.4g}"
                column["R2 of that fit over the bins"] = f"{result.subpopulation.r_squared:.3f}"
                column["examples with mem < 0 (in no bin)"] = str(link.curve.n_outside)
            columns[value, name] = column
        if "loss" in result.links:
            columns[value, "curvature"] |= {
                "Spearman(curvature, loss)": f"{result.curvature_and_loss:.3f}",
                "Spearman with curvature less that with loss": f"{result.difference:.3f}",
            }
        columns[value, "curvature"] |= {
            "control: Spearman, membership of another run": _text(result.shuffled),
            "reliability of memorization": _text(result.reliability),
        }
    return pd.DataFrame(columns).fillna("")


def tails_table(results: Mapping[str, Link1]) -> pd.DataFrame:
    """Return overlaps of the most memorized with the highest scores, and correlations within classes."""
    columns = {}
    for value, result in results.items():
        n = len(result.memorization) - result.n_undefined
        for name, link in result.links.items():
            column = {f"top {k} (chance {k / n:.2g})": f"{share:.3f}" for k, share in link.tails.items()}
            if link.by_class:
                inside = list(link.by_class.values())
                column["Spearman within classes: median"] = f"{np.median(inside):.3f}"
                column["least and greatest"] = f"{min(inside):.3f} to {max(inside):.3f}"
            columns[value, name] = column
    return pd.DataFrame(columns).fillna("")


def result_rows(study: str, results: Mapping[str, Link1]) -> list[ResultRow]:
    """Return the rows that are kept, each with its verdict."""
    rows = []

    def add(statistic: str, estimate: Estimate, claim: str, verdict: str) -> None:
        if np.isfinite(estimate.value):
            rows.append(ResultRow(study, statistic, estimate.value, estimate.low, estimate.high, claim, verdict))

    for value, result in results.items():
        link, loss = result.links["curvature"], result.links.get("loss")
        control = result.shuffled if np.isfinite(result.shuffled.value) else None
        claim = "rises with mem (Sec. 5.1)"
        for statistic, estimate in (
            ("Spearman(mem, curvature)", link.similarity["Spearman"]),
            ("Spearman, disjoint halves", link.disjoint_halves),
            ("Spearman, corrected for noise (estimate)", link.corrected),
        ):
            add(f"{statistic}, {value}", estimate, claim, rises(estimate, control))
        cosine, pairs = link.similarity["cosine"], link.random_pairs["cosine"].random_pairs
        add(f"cosine(mem, curvature), {value}", cosine, "high (Sec. 5.1)", rises(cosine, pairs))
        add(f"reference: cosine of random pairs, {value}", pairs, "", REFERENCE)
        add(f"Spearman(mem, curvature), models without the example, {value}", link.others, "", NO_CLAIM)
        if loss:
            add(f"Spearman(mem, loss), {value}", loss.similarity["Spearman"], "", NO_CLAIM)
            add(f"Spearman(mem, curvature) less Spearman(mem, loss), {value}", result.difference, "", NO_CLAIM)
            adds = rises(link.partial, control, SMALL_CORRELATION)
            claim = f"above {SMALL_CORRELATION:g}: says more than loss"
            add(f"Spearman(mem, curvature) given loss, {value}", link.partial, claim, adds)
            add(f"Spearman(mem, loss) given curvature, {value}", loss.partial, "", NO_CLAIM)
        add(f"control: membership of another run, {value}", result.shuffled, "", CONTROL)
        pairs = link.random_pairs["Spearman"].random_pairs
        add(f"reference: random pairs, {value}", pairs, "", REFERENCE)
    return rows


def _text(estimate: Estimate) -> str:
    return f"{estimate:.3f}" if np.isfinite(estimate.value) else ""
