"""Names and places of saved scores: <score dir>/<model name>/<column>_<model name>[_<h>].npy.

Curvature and trace depend on a step h and carry it in their names, and have the labels beside them, as published.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from libstore.index import index_digest
from libstore.store import array_bytes, exclusive, write_atomic

CURVATURE, TRACE, LABELS, LOSS = "curvature", "trace", "true_labels", "loss"
CURVATURE_FORMAT = 2
"""2: the loss is softplus of the margin, whose gradient keeps its digits where the model is confident."""
COLUMNS = "columns_"
"""Begins the names of files that say what a score from outside returns."""
_FILES = {CURVATURE: "curv_scores"}
_BY_STEP = (CURVATURE, TRACE, LABELS)


def fz_model_name(dataset: str, arch: str, ratio: str | float, run: int) -> str:
    """Return the name of one model of a Feldman-Zhang ensemble."""
    return f"{dataset}_{arch}_{ratio}_{run}"


def score_path(score_dir: Path, column: str, model_name: str, step: float | str = "") -> Path:
    """Return where one column of the scores of one model is kept.

    Args:
        score_dir: Root of the scores.
        column: Its name.
        model_name: Name of the model.
        step: Step h of the finite difference, or "exact"; only curvature, trace and labels have it.
    """
    end = f"_{step}" if column in _BY_STEP else ""
    return score_dir / model_name / f"{_FILES.get(column, column)}_{model_name}{end}.npy"


def scores_there(score_dir: Path, model_name: str) -> dict[tuple[str, str], Path]:
    """Return the scores of a model that are kept, by name and step ("" where there is none)."""
    names = {file: column for column, file in _FILES.items()}
    found = {}
    for path in sorted((score_dir / model_name).glob(f"*_{model_name}*.npy")):
        file, _, end = path.stem.partition(f"_{model_name}")
        if file != LABELS and not file.startswith(COLUMNS):
            found[names.get(file, file), end.removeprefix("_")] = path
    return found


def score_format(column: str) -> int:
    """Return the format of a column, to be raised when what it means changes; those of other formats are refused."""
    return CURVATURE_FORMAT if column in _BY_STEP else 1


def index_path(score_dir: Path, digest: str) -> Path:
    """Return where the index with a given digest is kept: the examples of a score array, in its order."""
    return score_dir / "index" / f"{digest}.npy"


def keep_index(score_dir: Path, index: np.ndarray) -> None:
    """Keep an index under its digest, once."""
    path = index_path(score_dir, index_digest(index))
    if not path.exists():
        with exclusive(path.parent):
            write_atomic(path, array_bytes(index.astype("<i8")))
