"""Read the saved runs and scores of an ensemble, one run at a time, for libscores.link1.

Only runs that belong together are read: libstore.comparable has the rule.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from libstore import fz
from libstore.comparable import (
    RUNS,
    SCORES,
    Kept,
    check_alike,
    check_content,
    check_made_of,
    check_weights,
    kept,
    weights_digest,
)
from libstore.errors import InputError
from libstore.fz import RunArrays, ensemble_root, list_runs, read_runs, run_dir
from libstore.index import index_digest, load_array
from libstore.scores import CURVATURE, LOSS, fz_model_name, index_path, score_format, score_path
from libstore.store import check_format, file_sha256, load_scores

if TYPE_CHECKING:
    from libscores.link1 import RunScores

_TRAIN = "train_fz_models.py"


def usable_runs(root: Path, ratio: str, start: int = 0, stop: int | None = None) -> list[int]:
    """List the runs of an ensemble as `list_runs`, without copies and without runs that nothing is known of.

    A run whose sidecar is that of another run or ratio, and one without a sidecar among runs that have theirs, is
    named on stderr and left out.

    Raises:
        InputError: There is no run, or a sidecar is damaged or of another format.
    """
    runs = list_runs(root, ratio, start, stop)
    sidecars = {run: kept(run_dir(root, ratio, run) / "aux_arrays.npz") for run in runs}
    usable = []
    for run, arrays in sidecars.items():
        settings = arrays.settings if arrays else {}
        place = settings.get("run", run), str(settings.get("ratio", ratio))
        if arrays:
            check_format(arrays.path, arrays.sidecar, fz.FORMAT, _TRAIN)
        if place != (run, ratio):
            reason = f"its settings are those of run {place[0]} at ratio {place[1]}, a copy?"
        elif not arrays and any(sidecars.values()):
            reason = "it has no sidecar aux_arrays.json, the others do"
        else:
            usable.append(run)
            continue
        print(f"{run_dir(root, ratio, run)}: left out: {reason}", file=sys.stderr)
    if not usable:
        raise InputError(f"{root / ratio}: no run that can be used; train them with {_TRAIN}")
    return usable


def check_runs(root: Path, ratio: str, runs: Iterable[int]) -> None:
    """Refuse runs that do not make one ensemble, by their sidecars.

    Raises:
        InputError: Two differ in more than run and seed, or a run's arrays and weights are of different trainings.
    """
    all_arrays = []
    for run in runs:
        path = run_dir(root, ratio, run) / "aux_arrays.npz"
        weights, arrays = path.parent / "checkpoints" / "model.pt", kept(path)
        check_alike([arrays, kept(weights) if weights.exists() else None])
        claims = [(weights, weights_digest(weights)), (path, _weights_of(arrays))]
        check_weights(claims, f"train the run again with {_TRAIN}")
        all_arrays.append(arrays)
    check_alike(all_arrays, RUNS)


def _weights_of(arrays: Kept | None) -> str | None:
    return arrays.sidecar.get("weights_sha256") if arrays else None


def checked_runs(root: Path, ratio: str, runs: Sequence[int], size: int | None = None) -> Iterator[RunArrays]:
    """Read runs that `check_runs` took as libstore.fz.read_runs does, with a look at each file's digest.

    Raises:
        InputError: A file is damaged or not what its sidecar says, or `read_runs` refuses it.
    """
    arrays = read_runs(root, ratio, runs, size)
    for run in runs:
        sidecar = kept(run_dir(root, ratio, run) / "aux_arrays.npz")
        if sidecar:
            check_content(sidecar)
        yield next(arrays)


def values_on(arrays: RunArrays, folder: Path, examples: np.ndarray, value: str) -> tuple[np.ndarray, np.ndarray]:
    """Lay a run's value out on an index as `RunArrays.on`, which must hold all its examples.

    Raises:
        InputError: The run has an example that is not in the index.
    """
    in_mask, values = arrays.on(examples, value)
    outside = len(arrays.index["train"]) + len(arrays.index["removed"]) - np.count_nonzero(~np.isnan(values))
    if outside:
        raise InputError(f"{folder / 'aux_arrays.npz'}: {outside} of its examples are not among the {len(examples)}")
    return in_mask, values


@dataclass(frozen=True)
class ScoredEnsemble:
    """The runs of an ensemble that are scored.

    Attributes:
        root: The ensemble's directory, as libstore.fz.ensemble_root finds it.
        dataset: Name of the data set.
        arch: Name of the architecture.
        ratio: The ratio's folder.
        runs: Numbers of the runs that are there and scored.
        missing: Numbers of the runs that are there but not scored or left out, or wanted but not there.
        examples: Positions of the examples in the data set, (N,).
        score_dir: Root of the scores.
        step: Step of the finite difference or "exact", part of the names of curvature and trace.
        value: "correctness" or "prob".
        score: Column of the scores.
    """

    root: Path
    dataset: str
    arch: str
    ratio: str
    runs: list[int]
    missing: list[int]
    examples: np.ndarray
    score_dir: Path
    step: float | str
    value: str
    score: str

    def read(self) -> Iterator[RunScores]:
        """Yield every run's membership, value, score and loss on `examples`, as libscores.link1.RunScores.

        Raises:
            InputError: Runs or scores do not belong together, before the first is read; or a file is damaged.
        """
        from libscores.link1 import RunScores

        self.check()
        for run, arrays in zip(self.runs, checked_runs(self.root, self.ratio, self.runs), strict=True):
            path = self._score_path(run)
            scores, _ = load_scores(path, score_format(self.score), scorer(self.dataset))
            if scores.shape != self.examples.shape:
                raise InputError(f"{path}: shape {scores.shape}, expected a score for each of {len(self.examples)}")
            mask, values = values_on(arrays, self._folder(run), self.examples, self.value)
            yield RunScores(mask, values, scores, self._losses(run, arrays))

    def tokens(self) -> bool:
        """Tell whether the runs' inputs are token ids, as far as a sidecar says so."""
        return bool(self._settings().get("model", {}).get("tokens", False))

    def data(self) -> Mapping[str, Any]:
        """Return what a sidecar says of the data that the runs are about; nothing of released models."""
        return self._settings().get("data", {})

    def _settings(self) -> Mapping[str, Any]:
        arrays = kept(self._folder(self.runs[0]) / "aux_arrays.npz")
        return arrays.settings if arrays else {}

    def _losses(self, run: int, arrays: RunArrays) -> np.ndarray | None:
        """Return the cross-entropy of every example under a run, (N,), from the cheapest source there is.

        That is what the run kept of the true label's log-odds or probability, or else its score "loss".
        """
        if arrays.logodds:
            return np.logaddexp(0, -arrays.on(self.examples, "logodds")[1])
        if arrays.prob:
            return -np.log(np.maximum(arrays.on(self.examples, "prob")[1], np.finfo(np.float32).tiny))
        path = score_path(self.score_dir, LOSS, fz_model_name(self.dataset, self.arch, self.ratio, run))
        if not path.exists():
            return None
        losses, sidecar = load_scores(path, score_format(LOSS), scorer(self.dataset))
        own, other = sidecar["settings"], _sidecar(self._score_path(run)).settings
        differ = [key for key in ("model", "data") if own.get(key) != other.get(key)]
        if differ:
            raise InputError(f"{path}: of another {differ[0]} than {self._score_path(run)}; score both again")
        return losses

    def check(self) -> None:
        """Compare what the sidecars say of every run's scores, arrays and weights, and of all runs together.

        Raises:
            InputError: Two files do not belong together; the message names both and what they differ in.
        """
        check_runs(self.root, self.ratio, self.runs)
        again = f"run {scorer(self.dataset)} with --overwrite"
        all_scores = []
        for run in self.runs:
            path, folder = self._score_path(run), self._folder(run)
            name, scores = fz_model_name(self.dataset, self.arch, self.ratio, run), _sidecar(path)
            if scores.settings.get("model_name", name) != name:
                raise InputError(f"{path}: its sidecar is of {scores.settings['model_name']}; {again}")
            if scores.settings["data"]["index_sha256"] != index_digest(self.examples):
                raise InputError(f"{path}: scores other examples than run {self.runs[0]}; score both with one index")
            arrays, weights = kept(folder / "aux_arrays.npz"), folder / "checkpoints" / "model.pt"
            model = scores.settings.get("model", {})
            claims = [(path, model.get("sha256")), (weights, weights_digest(weights))]
            check_weights([*claims, (folder / "aux_arrays.npz", _weights_of(arrays))], again)
            for file, digest in model.get("source", {}).items():
                source = weights.with_name(file)
                if file.endswith(".index") and source.exists():  # small, with a checksum of every tensor
                    check_weights([(path, digest), (source, file_sha256(source))], again)
            check_made_of(scores, arrays, ("data", "data"), ("model.spec", "model"))
            all_scores.append(scores)
        check_alike(all_scores, SCORES, f"; {again}")

    def _folder(self, run: int) -> Path:
        return run_dir(self.root, self.ratio, run)

    def _score_path(self, run: int) -> Path:
        name = fz_model_name(self.dataset, self.arch, self.ratio, run)
        return score_path(self.score_dir, self.score, name, self.step)

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
        h: float | str = 1e-3,
        value: str = "correctness",
        score: str = CURVATURE,
    ) -> ScoredEnsemble:
        """Look up which runs of an ensemble are there and scored; a run that is there twice counts once.

        Raises:
            InputError: No run is there, or none is scored.
        """
        root = ensemble_root(fz_model_dir, dataset, arch)
        there = usable_runs(root, ratio, start_run, stop_run)
        paths = {run: score_path(score_dir, score, fz_model_name(dataset, arch, ratio, run), h) for run in there}
        runs = _once({run: path for run, path in paths.items() if path.exists()})
        if not runs:
            raise InputError(f"{paths[there[0]]}: no model of {root / ratio} has this score; run {scorer(dataset)}")
        examples = load_array(index_path(score_dir, _sidecar(paths[runs[0]]).settings["data"]["index_sha256"]))
        missing = sorted(set(range(start_run, (there[-1] + 1) if stop_run is None else stop_run)) - set(runs))
        return ScoredEnsemble(root, dataset, arch, ratio, runs, missing, examples, score_dir, h, value, score)


def scorer(dataset: str) -> str:
    """Return the script that scores the networks of an ensemble on these data."""
    return "calc_curv_fz_imagenet_models.py" if dataset == "imagenet" else "calc_curv_fz_models.py"


def _sidecar(path: Path) -> Kept:
    scores = kept(path)
    if not scores or "data" not in scores.settings:
        raise InputError(f"{path}: its sidecar is missing or not one of scores; score the model again")
    return scores


def _once(scores: dict[int, Path]) -> list[int]:
    """Return the runs of different weights; the others are named on stderr."""
    seen: dict[str, int] = {}
    for run, path in scores.items():
        model = _sidecar(path).settings.get("model", {})
        weights = str(model.get("sha256") or model.get("source") or run)
        if seen.setdefault(weights, run) != run:
            print(f"{path}: left out: run {run} has the weights of run {seen[weights]}", file=sys.stderr)
    return sorted(seen.values())
