"""What notebooks leave behind: figures as PNG and PDF, statistics as JSON."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from matplotlib.figure import Figure

from libdata.store import exclusive, write_atomic


@dataclass(frozen=True)
class ResultRow:
    """One line of the table that ends a study.

    Attributes:
        study: For example "Link 1".
        statistic: What was measured.
        value: The number.
        low: Lower end of its 95 % confidence interval, None without one.
        high: Upper end.
        published: The number or claim of the paper, with its place.
        verdict: Whether the claim holds on these data, or why that cannot be said.
    """

    study: str
    statistic: str
    value: float
    low: float | None
    high: float | None
    published: str
    verdict: str


def save_results(figure_dir: Path, name: str, rows: Sequence[ResultRow]) -> Path:
    """Write rows to <figure_dir>/results_<name>.json and return that path; NaN is written as null."""
    path = figure_dir / f"results_{name}.json"
    content = [
        {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in asdict(row).items()}
        for row in rows
    ]
    with exclusive(figure_dir):
        write_atomic(path, (json.dumps(content, indent=2) + "\n").encode())
    return path


def save_figure(figure: Figure, figure_dir: Path, name: str) -> None:
    """Write a figure to <figure_dir>/<name>.png (150 dots per inch) and .pdf, without a date in either."""
    with exclusive(figure_dir):
        for suffix, metadata in (("png", {"Software": None}), ("pdf", {"CreationDate": None})):
            buffer = io.BytesIO()
            figure.savefig(buffer, format=suffix, dpi=150, bbox_inches="tight", metadata=metadata)
            write_atomic(figure_dir / f"{name}.{suffix}", buffer.getvalue())
