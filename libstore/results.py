"""What notebooks leave behind: figures as PNG and PDF, statistics as JSON."""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from libstore.errors import InputError
from libstore.store import exclusive, read_sidecar, write_atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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


def file_name(*parts: str) -> str:
    """Join what results are about to a part of a file name; of patterns and paths, what is safe there is left."""
    return "_".join(filter(None, (re.sub(r"[^\w.=+-]+", "_", part).strip("_.") for part in parts)))


def save_results(figure_dir: Path, name: str, about: Sequence[str], rows: Sequence[ResultRow]) -> Path:
    """Write the rows of one study of one data set and network; NaN is written as null.

    Args:
        figure_dir: Where to.
        name: The study, for example "link1".
        about: Data set, network, and whatever else tells these results from others of the study.
        rows: The results.

    Returns:
        <figure_dir>/results_<name>_<about>.json.
    """
    path = figure_dir / f"results_{file_name(name, *about)}.json"
    content = [
        {"about": " ".join(about)}
        | {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in asdict(row).items()}
        for row in rows
    ]
    with exclusive(figure_dir):
        write_atomic(path, (json.dumps(content, indent=2) + "\n").encode())
    return path


def save_figure(figure: Figure, figure_dir: Path, name: str) -> None:
    """Write a figure to <figure_dir>/<name>.png (150 dots per inch) and .pdf, without a date in either.

    It is laid out once, and stays so.
    """
    with exclusive(figure_dir):
        for suffix, metadata in (("png", {"Software": None}), ("pdf", {"CreationDate": None})):
            buffer = io.BytesIO()
            figure.savefig(buffer, format=suffix, dpi=150, metadata=metadata)
            figure.set_layout_engine("none")
            write_atomic(figure_dir / f"{name}.{suffix}", buffer.getvalue())


def measured_on(path: Path) -> tuple[str, ...]:
    """Return data set and network of a result file of the per-instance study; nothing for one without a sidecar."""
    if not path.with_suffix(".json").exists():
        return ()
    settings = read_sidecar(path)["settings"]
    try:
        return settings["data"]["dataset"], settings["model"]["arch"]
    except (KeyError, TypeError) as error:
        raise InputError(f"{path.with_suffix('.json')}: not the sidecar of a per-instance run") from error
