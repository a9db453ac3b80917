"""Gradient norms of chosen points at stages of a private training, as rows of a result file."""

from __future__ import annotations

import libcli as cli

import argparse
import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from libdata.datasets import dataset_size
from libmodels.checkpoints import own_names, read_checkpoint, read_weights
from libstore.errors import InputError
from libstore.index import check_index, load_array
from libstore.left_out import TRAINED_ON
from libstore.sensitivity_results import DISTANCE
from libstore.store import Output, file_sha256
from libtrain.dp_options import Study, add_dp_options, load_study, n_steps, settings_of
from libtrain.dp_training import DPTrainer
from libtrain.training import predict

REMOVED = "removed"
"""Value of --points for the points that are left out of the training."""


def run_parser(description: str | None, stages: int) -> cli.Parser:
    """Return a parser of the flags that say what a run trains, what to measure in it, and under which names.

    Args:
        description: The script's docstring.
        stages: Default of --stages.
    """
    parser = cli.Parser(description)
    add_dp_options(parser, epsilon=10.0, seed=None)
    parser.set_defaults(arch="lenet5", epochs=40, optimizer="sgd", lr=0.1, lr_drops=[])
    add = parser.add_argument
    add("--run", type=cli.positive_int, default=1, help="number of the run; also its seed unless --seed is given")
    text = "what follows ckpt in the name of the checkpoints' folder (default: the run's number)"
    add("--name", type=_file_name, help=text)
    add("--res_name", type=_file_name, help="what follows res in the name of the result file (default: as --name)")
    text = "points to measure: the first N, a range A-B, a file, 0 for the sample only, or removed: --remove-points'"
    add("--points", default="1000", help=text)
    add("--points-sample", type=cli.non_negative_int, default=0, metavar="K", help="measure K random others as well")
    add("--points-seed", type=cli.non_negative_int, default=0, metavar="S", help="seed of --points-sample")
    add("--remove-points", metavar="FILE", help="points to leave out of the training (default: none)")
    add("--stages", type=cli.number(int, at_least=2), default=stages, help="measure at i/(STAGES-1) of the training")
    text = "measure at this one share only, from its checkpoint (default: all)"
    add("--stage", type=_share, metavar="SHARE", help=text)
    text = "measure under the checkpoints of another program in this folder, files whose names end in their step, and "
    add("--checkpoints", type=Path, metavar="FOLDER", help=text + "do not train (default: train)")
    add("--save_freq", type=cli.positive_int, default=100, help="steps between checkpoints")
    return parser


def parse_run(parser: cli.Parser, argv: Sequence[str] | None) -> cli.Namespace:
    """Parse, and fill in the seed and the names that follow from the run's number."""
    args = parser.parse_args(argv)
    args.seed = args.run if args.seed is None else args.seed
    args.name = args.name or str(args.run)
    args.res_name = args.res_name or args.name
    return args


def _file_name(text: str) -> str:
    if not re.fullmatch(r"[\w.=+-]+", text):
        raise argparse.ArgumentTypeError(f"{text!r} holds more than letters, digits and _ . = + -")
    return text


def _share(text: str) -> float:
    share = cli.number(float, at_least=0)(text)
    if share > 1:
        raise argparse.ArgumentTypeError(f"{text} is out of range, must be <= 1")
    return share


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


def stage_shares(args: cli.Namespace) -> list[float]:
    """Return the shares of the training that --stages or --stage name."""
    return [i / (args.stages - 1) for i in range(args.stages)] if args.stage is None else [args.stage]


def stage_steps(stages: Iterable[float], total_steps: int, checkpoint_steps: np.ndarray) -> list[int]:
    """Return the checkpoint next to each share of the training, the earlier one on a tie, without repeats."""
    wanted = [share * total_steps for share in stages]
    return sorted({int(checkpoint_steps[np.argmin(np.abs(checkpoint_steps - step))]) for step in wanted})


def choose_points(args: cli.Namespace, study: Study, removed: np.ndarray) -> np.ndarray:
    """Return the points that --points and --points-sample name, the random ones last.

    Raises:
        InputError: A point is out of range, repeated, removed or not trained on, or there are too few to sample;
            with --points removed, none is removed or a sample is asked for.
    """
    if args.points == REMOVED:
        if not removed.size:
            raise InputError(f"--points {REMOVED}: needs --remove-points")
        if args.points_sample:
            raise InputError(f"--points-sample {args.points_sample}: does not go with --points {REMOVED}")
        return removed
    trained = study.data.index[study.rows]
    only_sample = args.points == "0" and args.points_sample
    size = study.data.split_size
    points = np.empty(0, np.int64) if only_sample else read_points(args.points, size)
    wrong = np.setdiff1d(points, trained)
    if wrong.size:
        reason = "is among the removed" if wrong[0] in removed else "is not among the training examples"
        raise InputError(f"--points {args.points}: point {wrong[0]} {reason}")
    others = np.setdiff1d(trained, points)
    if args.points_sample > len(others):
        raise InputError(f"--points-sample {args.points_sample}: only {len(others)} other points are trained on")
    sample = np.random.default_rng(args.points_seed).choice(others, args.points_sample, replace=False)
    return np.concatenate([points, np.sort(sample)])


def load_study_and_points(args: cli.Namespace, data_dir: Path) -> tuple[Study, np.ndarray]:
    """Load the data without the points of --remove-points, and return it with the points to measure.

    Raises:
        InputError: As `load_study`, `read_points` and `choose_points`.
    """
    size = dataset_size(args.dataset, "train", data_dir)
    removed = read_points(args.remove_points, size) if args.remove_points else np.empty(0, np.int64)
    study = load_study(args, data_dir, leave_out=removed)
    return study, choose_points(args, study, removed)


def kept_checkpoints(args: cli.Namespace, folder: Path, study: Study) -> Checkpoints:
    """Return the checkpoints that these flags keep, every --save_freq steps and the last, under a sensitivity_dir.

    With --checkpoints, those that are in its folder.

    Raises:
        InputError: The folder of the flags has checkpoints of another program, or --checkpoints has none to measure
            under.
    """
    total, settings = n_steps(args, study.planned), settings_of(args, study)
    if args.checkpoints is not None:
        return _others_checkpoints(args, total, settings)
    place = folder / "models" / f"ckpt{args.name}"
    strange = [path for path in _numbered_files(place).values() if not path.name.startswith("step_")]
    if strange:
        remedy = "--checkpoints measures under them, --name trains in another folder"
        raise InputError(f"{strange[0]}: not a checkpoint of this program; {remedy}")
    steps = np.unique(np.append(np.arange(0, total, args.save_freq), total))
    return Checkpoints(place, steps, settings)


def _others_checkpoints(args: cli.Namespace, total: int, settings: dict[str, Any]) -> Checkpoints:
    files = _numbered_files(args.checkpoints)
    if not files:
        raise InputError(f"--checkpoints {args.checkpoints}: no file whose name ends in a step, such as model_step_100")
    steps = np.array(sorted(files))
    if steps[-1] > total:
        raise InputError(f"{files[steps[-1]]}: beyond the {total} steps of --epochs, --batch_size and the examples")
    reach = max(args.save_freq, *np.diff(steps), 0)
    for share in stage_shares(args):
        nearest = steps[np.argmin(np.abs(steps - share * total))]
        if abs(nearest - share * total) > reach:
            stage = f"stage {share:g} is step {share * total:g}"
            raise InputError(f"--checkpoints {args.checkpoints}: {stage}, the nearest checkpoint is of step {nearest}")
    digest = hashlib.sha256("".join(f"{step} {file_sha256(files[step])}\n" for step in steps.tolist()).encode())
    return Checkpoints(args.checkpoints, steps, {**settings, "checkpoints_sha256": digest.hexdigest()}, files)


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

    def privacy(self) -> dict[str, Any] | None:
        """Return the plan that is kept with the first checkpoint, if that is there."""
        if self.others is not None:
            return None
        first = self.output(0)
        return read_checkpoint(first.path)["privacy"] if first.path.exists() and first.finished() else None

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
    trainer: DPTrainer, points: np.ndarray, rows: torch.Tensor, test: tuple[torch.Tensor, torch.Tensor]
) -> dict[str, np.ndarray]:
    """Measure points under the trainer's present weights.

    Args:
        trainer: Its clipping norm C and batch size B give the published column `distance (sum)`, min(norm, C)/B.
        points: Positions of the points, (P,).
        rows: Their rows of the trainer's data, (P,).
        test: Images and labels of the test split, on the trainer's device.

    Returns:
        Columns of a result file, each (P,).
    """
    norms = trainer.gradient_norms(rows).double().numpy()
    clipped = np.minimum(norms, trainer.settings.max_grad_norm)
    there = rows.to(trainer.images.device)
    correct, _ = predict(trainer.model, trainer.images[there], trainer.labels[there])
    accuracy = predict(trainer.model, *test)[0].mean()
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
    stages: Iterable[float],
    points: np.ndarray,
    study: Study,
    test: tuple[torch.Tensor, torch.Tensor],
    stopping: Callable[[], int] = lambda: 0,
) -> pd.DataFrame:
    """Measure points at the checkpoints next to shares of the training; `measure` says what a row holds.

    Raises:
        Stopped: `stopping`, asked before every stage, returned a signal; what was measured is measured again then.
        InputError: A gradient norm is not finite.
    """
    rows = torch.from_numpy(np.searchsorted(study.data.index, points))
    wanted = stage_steps(stages, trainer.settings.steps, checkpoints.steps)
    tables: list[pd.DataFrame] = []
    with cli.progress(len(wanted), f"measuring {checkpoints.folder.name}", "stages") as bar:
        for step in wanted:
            if stopping():
                at = f"stopped while measuring, {len(tables)} of {len(wanted)} stages done and all checkpoints kept"
                raise cli.Stopped(stopping(), f"{checkpoints.folder}: {at}; run the same command again to go on")
            checkpoints.load(step, trainer)
            columns = measure(trainer, points, rows, test)
            bad = np.flatnonzero(~np.isfinite(columns["grad_norm"]))
            if bad.size:
                raise InputError(f"{checkpoints.file(step)}: the gradient norm of point {points[bad[0]]} is not finite")
            tables.append(pd.DataFrame({"step": step, **columns}))
            bar.update()
    return pd.concat(tables)


def constant_columns(args: cli.Namespace, privacy: Mapping[str, Any]) -> dict[str, Any]:
    """Return the columns of a result file that are the same in every row, under their published names."""
    left_out = {TRAINED_ON: 0} if args.points == REMOVED else {}
    return {
        "p": privacy["sample_rate"],
        "sigma": privacy["noise_multiplier"],
        "cn": args.max_grad_norm,
        "batch_size": args.batch_size,
        "eps": args.epsilon,
        "delta": args.delta,
        "lr": args.lr,
        "epochs": args.epochs,
        "total_steps": privacy["steps"],
        "seed": args.seed,
        "run": args.run,
        "dataset": args.dataset,
        "model": args.arch,
        "reduction": "sum",
        **left_out,
    }
