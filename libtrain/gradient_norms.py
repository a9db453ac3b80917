"""Gradient norms of chosen points at stages of a private training, as rows of a result file."""

from __future__ import annotations

import libcli as cli

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from libdata.choice import DataChoice
from libdata.datasets import Dataset, dataset_size
from libmodels.checkpoints import own_names, read_checkpoint, read_weights
from libmodels.networks import Network
from libstore.errors import InputError
from libstore.index import check_index, load_array
from libstore.left_out import TRAINED_ON
from libstore.sensitivity_results import DISTANCE
from libstore.store import Output, file_sha256
from libtrain.dp_training import DPTrainer
from libtrain.private_study import Study, load_study
from libtrain.settings import DPSettings, MeasureSettings, PrivacyPlan, StudySettings
from libtrain.training import predict

if TYPE_CHECKING:
    import pandas as pd

REMOVED = "removed"
"""Value of --points for the points that are left out of the training."""


def read_points(text: str, size: int) -> np.ndarray:
    """Resolve a list of points to distinct positions in torchvision's order.

    Args:
        text: A number N (the first N), a range such as 0-999, or a file: .npy, or text with positions between blanks.
        size: Number of examples of the data set.

    Raises:
        InputError: A position is out of range or repeated, or the file is unreadable.
    """
    first, dash, last = text.partition("-")
    if text.isdecimal():
        points = np.arange(int(text))
    elif dash and first.isdecimal() and last.isdecimal():
        points = np.arange(int(first), int(last) + 1)
    elif text.endswith(".npy"):
        points = load_array(text)
    else:
        try:
            points = np.array(Path(text).read_text(encoding="utf-8").split(), dtype=np.int64)
        except (OSError, ValueError, UnicodeDecodeError) as error:
            raise InputError(f"{text}: cannot read points: {error}") from error
    return check_index(points, size, text)


def choose_points(measuring: MeasureSettings, study: Study, removed: np.ndarray) -> np.ndarray:
    """Return the points that the settings name, the random ones last.

    Raises:
        InputError: A point is out of range, repeated, removed or not trained on, or there are too few to sample;
            with --points removed, none is removed or a sample is asked for.
    """
    if measuring.points == REMOVED:
        if not removed.size:
            raise InputError(f"--points {REMOVED}: needs --remove_points")
        if measuring.points_sample:
            raise InputError(f"--points_sample {measuring.points_sample}: does not go with --points {REMOVED}")
        return removed
    trained = study.data.index[study.rows]
    only_sample = measuring.points == "0" and measuring.points_sample
    points = np.empty(0, np.int64) if only_sample else read_points(measuring.points, study.data.split_size)
    wrong = np.setdiff1d(points, trained)
    if wrong.size:
        reason = "is among the removed" if wrong[0] in removed else "is not among the training examples"
        raise InputError(f"--points {measuring.points}: point {wrong[0]} {reason}")
    others, wanted = np.setdiff1d(trained, points), measuring.points_sample
    if wanted > len(others):
        raise InputError(f"--points_sample {wanted}: only {len(others)} other points are trained on")
    sample = np.random.default_rng(measuring.points_seed).choice(others, wanted, replace=False)
    return np.concatenate([points, np.sort(sample)])


def load_study_and_points(
    choice: DataChoice,
    network: Network,
    study: StudySettings,
    settings: DPSettings,
    measuring: MeasureSettings,
    data_dir: Path,
) -> tuple[Study, np.ndarray]:
    """Load the data without the points to remove, and return it with the points to measure.

    Raises:
        InputError: As `load_study`, `read_points` and `choose_points`.
    """
    removed = np.empty(0, np.int64)
    if measuring.remove_points:
        removed = read_points(measuring.remove_points, dataset_size(choice.dataset, "train", data_dir))
    loaded = load_study(choice, network, study, settings, data_dir, leave_out=removed)
    return loaded, choose_points(measuring, loaded, removed)


def kept_checkpoints(folder: Path, study: Study, settings: DPSettings, measuring: MeasureSettings) -> Checkpoints:
    """Return the checkpoints that a training keeps in a folder: every so many steps, and the last.

    Where `measuring` names checkpoints of another program, those.

    Raises:
        InputError: The folder has checkpoints of another program, or none is there to measure under.
    """
    total, decided = settings.steps(study.planned), study.describe(settings)
    if measuring.checkpoints is not None:
        return _others_checkpoints(Path(measuring.checkpoints), total, decided, measuring)
    strange = [path for path in _numbered_files(folder).values() if not path.name.startswith("step_")]
    if strange:
        remedy = "--checkpoints measures under them, --name trains in another folder"
        raise InputError(f"{strange[0]}: not a checkpoint of this program; {remedy}")
    return Checkpoints(folder, np.array(measuring.kept_steps(total)), decided)


def _others_checkpoints(
    folder: Path, total: int, decided: Mapping[str, Any], measuring: MeasureSettings
) -> Checkpoints:
    files = _numbered_files(folder)
    if not files:
        raise InputError(f"--checkpoints {folder}: no file whose name ends in a step, such as model_step_100")
    steps = np.array(sorted(files))
    if steps[-1] > total:
        raise InputError(f"{files[steps[-1]]}: beyond the {total} steps of --epochs, --batch_size and the examples")
    reach = max(measuring.save_freq, *np.diff(steps), 0)
    for share in measuring.shares:
        nearest = steps[np.argmin(np.abs(steps - share * total))]
        if abs(nearest - share * total) > reach:
            stage = f"stage {share:g} is step {share * total:g}"
            raise InputError(f"--checkpoints {folder}: {stage}, the nearest checkpoint is of step {nearest}")
    digest = hashlib.sha256("".join(f"{step} {file_sha256(files[step])}\n" for step in steps.tolist()).encode())
    return Checkpoints(folder, steps, {**decided, "checkpoints_sha256": digest.hexdigest()}, files)


def _numbered_files(folder: Path) -> dict[int, Path]:
    """Return the files of a folder whose names end in a number, an extension apart, by that number."""
    files: dict[int, Path] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        match = re.fullmatch(r"[^.].*?(\d+)(\.(pt|pth|pkl|ckpt|bin|tar))*|(\d+)", path.name)
        if match and path.is_file():
            step = int(match[1] or match[4])
            if step in files:
                raise InputError(f"{path}: of the same step as {files[step].name}")
            files[step] = path
    return files


@dataclass(frozen=True)
class Checkpoints:
    """The weights of one training at chosen steps, in a folder.

    Attributes:
        folder: Where they are, step_<n>.pt.
        steps: Numbers of finished steps, increasing, from 0 to the last.
        settings: What decides the weights.
        others: The files, by step, if another program has made them.
    """

    folder: Path
    steps: np.ndarray
    settings: Mapping[str, Any]
    others: Mapping[int, Path] | None = None

    def file(self, step: int) -> Path:
        """Return the path of one step's weights."""
        return self.output(step).path if self.others is None else self.others[step]

    def output(self, step: int) -> Output:
        """Return the file of one step."""
        return Output(self.folder / f"step_{step}.pt", {**self.settings, "step": step})

    def finished(self, *, overwrite: bool = False) -> bool:
        """Tell whether all are there; raises InputError if one is of other settings."""
        return self.others is not None or all(
            [self.output(int(step)).finished(overwrite=overwrite) for step in self.steps]
        )

    def plan(self, *, overwrite: bool = False) -> PrivacyPlan | None:
        """Return the plan that is kept with the first checkpoint, if that is there; raises as `finished`."""
        if self.others is not None:
            return None
        first = self.output(0)
        there = first.finished(overwrite=overwrite)
        return PrivacyPlan.of_record(read_checkpoint(first.path)["privacy"]) if there else None

    def load(self, step: int, trainer: DPTrainer) -> None:
        """Put the weights of one step into a trainer's network.

        Raises:
            InputError: The checkpoint is missing, damaged, of other settings or another network's.
        """
        if self.others is not None:
            trainer.model.load_state_dict(read_weights(self.others[step], trainer.model))
            return
        output = self.output(step)
        if not output.finished():
            raise InputError(f"{output.path}: no such checkpoint, or a damaged one; train first, without --stage")
        weights = read_checkpoint(output.path)["state_dict"]
        trainer.model.load_state_dict(own_names(weights, trainer.model.state_dict()))


def measure(
    trainer: DPTrainer, points: np.ndarray, rows: torch.Tensor, test: Dataset, test_examples: int | None = None
) -> dict[str, np.ndarray]:
    """Measure points under the trainer's present weights.

    Args:
        trainer: Its clipping norm C and batch size B give the published column `distance (sum)`, min(norm, C)/B.
        points: Positions of the points, (P,).
        rows: Their rows of the trainer's data, (P,).
        test: The test split.
        test_examples: Take the accuracy on the first so many of them; by default on all.

    Returns:
        Columns of a result file, each (P,).
    """
    norms = trainer.gradient_norms(rows).double().numpy()
    clipped = np.minimum(norms, trainer.settings.max_grad_norm)
    there = rows.to(trainer.images.device)
    correct, _ = predict(trainer.model, trainer.images[there], trainer.labels[there])
    accuracy = predict(trainer.model, test.images[:test_examples], test.labels[:test_examples])[0].mean()
    return {
        "point": points,
        DISTANCE: clipped / trainer.settings.batch_size,
        "grad_norm": norms,
        "clipped_norm": clipped,
        "correct": correct.astype(np.int64),
        "accuracy": np.full(len(points), accuracy),
    }


def measure_stages(
    trainer: DPTrainer,
    checkpoints: Checkpoints,
    measuring: MeasureSettings,
    points: np.ndarray,
    study: Study,
    stopping: Callable[[], int] = lambda: 0,
) -> pd.DataFrame:
    """Measure points at the checkpoints next to shares of the training; `measure` says what a row holds.

    The accuracy is on the test examples that the settings name; at the training's last step on all.

    Raises:
        Stopped: `stopping`, asked before every stage, returned a signal; what was measured is measured again then.
        InputError: A gradient norm is not finite.
    """
    import pandas as pd

    rows = torch.from_numpy(np.searchsorted(study.data.index, points))
    total, kept = trainer.plan.steps, checkpoints.steps.tolist()
    wanted, fewer = measuring.stage_steps(total, kept), measuring.fewer_stages(total, kept)
    if fewer:
        cli.warn(f"{checkpoints.folder}: {fewer}")
    tables: list[pd.DataFrame] = []
    with cli.progress(len(wanted), f"measuring {checkpoints.folder.name}", "stages") as bar:
        for step in wanted:
            if stopping():
                at = f"stopped while measuring, {len(tables)} of {len(wanted)} stages done and all checkpoints kept"
                raise cli.Stopped(stopping(), f"{checkpoints.folder}: {at}; run the same command again to go on")
            checkpoints.load(step, trainer)
            on = measuring.test_examples if step < total else None
            columns = measure(trainer, points, rows, study.test, on)
            bad = np.flatnonzero(~np.isfinite(columns["grad_norm"]))
            if bad.size:
                file = checkpoints.file(step)
                raise InputError(f"{file}: the gradient norm of point {points[bad[0]]} is not finite")
            tables.append(pd.DataFrame({"step": step, **columns}))
            bar.update()
    return pd.concat(tables)


def constant_columns(
    study: Study, settings: DPSettings, plan: PrivacyPlan, measuring: MeasureSettings, run: int
) -> dict[str, Any]:
    """Return the columns of a result file that are the same in every row, under their published names."""
    left_out = {TRAINED_ON: 0} if measuring.points == REMOVED else {}
    return {
        "p": plan.sample_rate,
        "sigma": plan.noise_multiplier,
        "cn": settings.max_grad_norm,
        "batch_size": settings.batch_size,
        "eps": settings.epsilon,
        "delta": settings.delta,
        "lr": settings.lr,
        "epochs": settings.epochs,
        "total_steps": plan.steps,
        "seed": settings.seed,
        "run": run,
        "dataset": study.data.name,
        "model": study.spec.arch,
        "reduction": "sum",
        **left_out,
    }
