"""Read the saved runs and scores of an ensemble, one run at a time, for libscores.link1."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from libdata.errors import InputError
from libdata.fz import ensemble_root, list_runs, read_run, run_dir, same_content
from libdata.index import index_digest, load_array
from libdata.scores import CURVATURE, fz_model_name, index_path, score_path
from libdata.store import load_scores


@dataclass(frozen=True)
class ScoredEnsemble:
    """The runs of an ensemble that are scored.

    Attributes:
        root: The ensemble's directory, as libdata.fz.ensemble_root finds it.
        dataset: Name of the data set.
        arch: Name of the architecture.
        ratio: The ratio's folder.
        runs: Numbers of the runs that are there and scored.
        missing: Numbers of the runs that are there but not scored, or wanted but not there.
        examples: Positions of the examples in the data set, (N,).
        score_dir: Root of the scores.
        h: Step of the finite difference, part of the scores' names.
        value: "correctness" or "prob".
    """

    root: Path
    dataset: str
    arch: str
    ratio: str
    runs: list[int]
    missing: list[int]
    examples: np.ndarray
    score_dir: Path
    h: float
    value: str

    def read(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Yield every run's membership, value and curvature on `examples`, as libscores.link1.RunScores.

        Raises:
            InputError: A run's scores are damaged or belong to other examples than the first run's.
        """
        first: tuple[object, Path] | None = None
        same_content(run_dir(self.root, self.ratio, run) for run in self.runs)
        for run in self.runs:
            path = self._score_path(run)
            curvature, sidecar = load_scores(path)
            digest = sidecar["settings"]["data"]["index_sha256"]
            if digest != index_digest(self.examples):
                raise InputError(f"{path}: scores other examples than run {self.runs[0]}; score both with one index")
            content = sidecar["settings"]["data"].get("content_sha256")
            first = first or (content, path)
            if content != first[0]:
                raise InputError(f"{path} and {first[1]}: content_sha256 of their data differs; score both on one")
            in_mask, value = read_run(run_dir(self.root, self.ratio, run)).on(self.examples, self.value)
            yield in_mask, value, curvature

    def _score_path(self, run: int) -> Path:
        return score_path(self.score_dir, CURVATURE, fz_model_name(self.dataset, self.arch, self.ratio, run), self.h)

    @staticmethod
    def find(
        fz_model_dir: Path,
        score_dir: Path,
        dataset: str,
        arch: str,
        ratio: str,
        *,
        start_run: int = 0,
        stop_run: int | None = None,
        h: float = 1e-3,
        value: str = "correctness",
    ) -> ScoredEnsemble:
        """Look up which runs of an ensemble are there and scored.

        Raises:
            InputError: No run is there, or none is scored.
        """
        root = ensemble_root(fz_model_dir, dataset, arch)
        there = list_runs(root, ratio, start_run, stop_run)
        paths = {run: score_path(score_dir, CURVATURE, fz_model_name(dataset, arch, ratio, run), h) for run in there}
        runs = [run for run in there if paths[run].exists()]
        if not runs:
            raise InputError(f"{paths[there[0]]}: no model of {root / ratio} is scored; run calc_curv_fz_models.py")
        _, sidecar = load_scores(paths[runs[0]])
        examples = load_array(index_path(score_dir, sidecar["settings"]["data"]["index_sha256"]))
        missing = sorted(set(range(start_run, (there[-1] + 1) if stop_run is None else stop_run)) - set(runs))
        return ScoredEnsemble(root, dataset, arch, ratio, runs, missing, examples, score_dir, h, value)
