"""Names and places of saved scores: <score dir>/<model name>/<kind>_<model name>_<h>.npy."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from libstore.index import index_digest
from libstore.store import array_bytes, exclusive, write_atomic

CURVATURE, TRACE, LABELS = KINDS = ("curv_scores", "trace", "true_labels")


def fz_model_name(dataset: str, arch: str, ratio: str | float, run: int) -> str:
    """Return the name of one model of a Feldman-Zhang ensemble."""
    return f"{dataset}_{arch}_{ratio}_{run}"


def score_path(score_dir: Path, kind: str, model_name: str, h: float) -> Path:
    """Return where one kind of score of one model is kept; h is the step of the finite difference."""
    return score_dir / model_name / f"{kind}_{model_name}_{h}.npy"


def index_path(score_dir: Path, digest: str) -> Path:
    """Return where the index with a given digest is kept: the examples of a score array, in its order."""
    return score_dir / "index" / f"{digest}.npy"


def keep_index(score_dir: Path, index: np.ndarray) -> None:
    """Keep an index under its digest, once."""
    path = index_path(score_dir, index_digest(index))
    if not path.exists():
        with exclusive(path.parent):
            write_atomic(path, array_bytes(index.astype("<i8")))
