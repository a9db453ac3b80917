"""What every private training script shares: its flags, what follows from them, and its log."""

from __future__ import annotations

import libcli as cli

import argparse
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch

from libdata.datasets import DATASETS, NORMALIZATIONS, Dataset, dataset_size, load_dataset
from libmodels import ARCHITECTURES
from libmodels.checkpoints import ModelSpec
from libscores.accounting import ACCOUNTANTS, calibrate_noise_multiplier, pld_interval, spent_epsilon
from libstore.errors import InputError
from libstore.index import check_index_content, index_digest, read_index
from libtrain.dp_training import GRAD_SAMPLE_MODES, OPTIMIZERS, DPSettings, Step

SEED_STREAMS = {"init": "the initial weights", "order": "the batches", "noise": "the noise"}


def seeds_of(args: cli.Namespace) -> dict[str, int]:
    """Return the seed of every stream in `SEED_STREAMS`."""
    given = {stream: getattr(args, f"{stream}_seed") for stream in SEED_STREAMS}
    return {stream: args.seed if seed is None else seed for stream, seed in given.items()}


def add_dp_options(parser: cli.Parser, epsilon: float | None = None, seed: int | None = 0) -> None:
    """Add the flags; the defaults of training are those of arXiv 2402.18726, --epsilon is required without one.

    Without a seed, it is to be the run's number.
    """
    add = parser.add_argument
    add("--dataset", choices=DATASETS, default="mnist", help="data set")
    add("--arch", choices=ARCHITECTURES, default="smallcnn", help="architecture")
    cli.add_architecture_options(parser, ARCHITECTURES, private=True)
    add("--normalization", choices=NORMALIZATIONS, default="standard", help="pixels in [0,1], or standardised")
    add("--data_subset", default="all", help="examples of the study: all, the first N, or an .npy index")
    add("--subset", help=".npy index of the examples to train on, among those of the study (default: all of them)")
    add("--epsilon", type=cli.positive_float, required=epsilon is None, default=epsilon, help="privacy budget")
    add("--delta", type=cli.fraction, default=1e-5, help="delta of (epsilon, delta)-differential privacy")
    add("--allow_large_delta", action="store_true", help="accept a delta of 1/N or more, N the training examples")
    add("--accountant", choices=ACCOUNTANTS, default="pld", help="bound that the noise is calibrated with, once")
    add("--epochs", type=cli.positive_int, default=20, help="expected passes over the training examples")
    add("--batch_size", type=cli.positive_int, default=256, help="expected batch size B; the sample rate is B/N")
    add("--max_grad_norm", type=cli.positive_float, default=1.0, help="clipping norm C")
    add("--optimizer", choices=OPTIMIZERS, default="rmsprop", help="what takes the noisy gradients")
    add("--lr", type=cli.positive_float, default=1e-3, help="learning rate of the first step")
    add("--momentum", type=cli.number(float, at_least=0, below=1), default=0.0, help="momentum of sgd and rmsprop")
    add(
        "--lr_drops", type=cli.fraction, nargs="*", default=[0.6, 0.8], metavar="SHARE",
        help="shares of the steps after which the learning rate drops; without a value, it never does",
    )  # fmt: skip
    add("--lr_drop_factor", type=cli.fraction, default=0.1, help="what the learning rate is multiplied by then")
    text = "seed of initial weights, batches and noise" + (" (default: the run's number)" if seed is None else "")
    add("--seed", type=cli.non_negative_int, default=seed, help=text)
    for stream, what in SEED_STREAMS.items():
        add(f"--{stream}_seed", type=cli.non_negative_int, help=f"seed of {what} alone (default: that of --seed)")
    add(
        "--grad_sample_mode", choices=GRAD_SAMPLE_MODES, default="ghost",
        help="ghost: clipped sums without per-sample gradients; hooks: Opacus's per-sample gradients (slower)",
    )  # fmt: skip
    add(
        "--max_physical_batch_size", type=cli.positive_int, default=512,
        help="examples worked on at once; bounds memory, a larger batch is split with the same result",
    )  # fmt: skip
    add("--save_every", type=cli.number(float, at_least=0), default=60.0, help="seconds between saved states")
    add(
        "--resume", action=argparse.BooleanOptionalAction, default=True,
        help="go on from the saved state of an interrupted run, if there is one",
    )  # fmt: skip
    cli.add_device(parser)
    cli.add_overwrite(parser)


@dataclass(frozen=True)
class Study:
    """The data of a private training.

    Attributes:
        data: The training-split examples of the study.
        test: The test split.
        rows: The rows of `data` to train on, sorted, int64, shape (N,).
        spec: The network.
        planned: Number of examples that sample rate, noise and steps are planned for: N and those left out.
    """

    data: Dataset
    test: Dataset
    rows: np.ndarray
    spec: ModelSpec
    planned: int

    def tensors(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return training images and labels, test images and labels, on a device."""
        parts = (self.data.images, self.data.labels, self.test.images, self.test.labels)
        images, labels, test_images, test_labels = (part.to(device) for part in parts)
        return images, labels, test_images, test_labels


def load_study(args: cli.Namespace, data_dir: Path, leave_out: np.ndarray | None = None) -> Study:
    """Load what the flags name and check them against it.

    Args:
        args: The flags of `add_dp_options`.
        data_dir: Where the data sets are.
        leave_out: Positions not to train on, each among the training examples; none by default. Sample rate, noise
            and number of steps stay those of a training with them.

    Raises:
        InputError: An index is out of range, repeated or outside the study; the batch size is over N; delta is
            1/N or more without --allow_large_delta; momentum is given to an optimizer without it.
    """
    size = dataset_size(args.dataset, "train", data_dir)
    index = np.sort(read_index(args.data_subset, size))
    train_index = index if args.subset is None else np.sort(read_index(args.subset, size))
    outside = train_index[~np.isin(train_index, index)]
    if outside.size:
        raise InputError(f"{args.subset}: example {outside[0]} is not in --data_subset {args.data_subset}")
    planned = len(train_index)
    if leave_out is not None:
        absent = leave_out[~np.isin(leave_out, train_index)]
        if absent.size:
            raise InputError(f"point {absent[0]} cannot be left out: it is not among the training examples")
        train_index = np.setdiff1d(train_index, leave_out)
    n_train = len(train_index)
    if args.batch_size > n_train:
        raise InputError(f"--batch_size {args.batch_size}: there are only {n_train} training examples")
    if args.delta >= 1 / n_train and not args.allow_large_delta:
        raise InputError(
            f"--delta {args.delta:g} is at least 1/N = 1/{n_train}: such a guarantee may reveal whole examples; "
            "take a smaller one or add --allow_large_delta"
        )
    if args.momentum and args.optimizer == "adam":
        raise InputError(f"--momentum {args.momentum:g}: adam has none, leave it out")
    shape = {"normalization": args.normalization, "image_size": ARCHITECTURES[args.arch].image_size}
    data = load_dataset(args.dataset, "train", data_dir, index=index, **shape)
    test = load_dataset(args.dataset, "test", data_dir, **shape)
    for subset in (args.data_subset, args.subset):
        if subset is not None:
            check_index_content(subset, data.content_sha256)
    options = {**ARCHITECTURES[args.arch].private, **cli.architecture_options(args, ARCHITECTURES)}
    spec = ModelSpec.for_dataset(args.arch, data, **options)
    return Study(data, test, np.searchsorted(index, train_index), spec, planned)


def settings_of(args: cli.Namespace, study: Study) -> dict[str, Any]:
    """Return what decides the weights, as a sidecar says it."""
    privacy = ("epsilon", "delta", "accountant", "max_grad_norm", "batch_size")
    optimization = ("epochs", "optimizer", "lr", "momentum", "lr_drops", "lr_drop_factor")
    return {
        "privacy": {key: getattr(args, key) for key in privacy},
        "optimization": {
            key: getattr(args, key) for key in (*optimization, "grad_sample_mode", "max_physical_batch_size")
        },
        "seed": args.seed,
        "seeds": seeds_of(args),
        "data": study.data.identity(),
        "train_on": {
            "n_examples": len(study.rows),
            "planned": study.planned,
            "index_sha256": index_digest(study.data.index[study.rows]),
        },
        "model": study.spec.describe(),
    }


def n_steps(args: cli.Namespace, n_train: int) -> int:
    """Return the number of steps of so many expected passes over the training examples."""
    return max(1, round(args.epochs * n_train / args.batch_size))


def plan_privacy(args: cli.Namespace, n_train: int) -> dict[str, Any]:
    """Calibrate the noise: return the budget, `sample_rate`, `steps`, `noise_multiplier` and `spent_epsilon`.

    Raises:
        InputError: No noise multiplier gives the budget.
    """
    sample_rate = args.batch_size / n_train
    steps = n_steps(args, n_train)
    try:
        noise, spent = calibrate_noise_multiplier(args.epsilon, args.delta, sample_rate, steps, args.accountant)
    except ValueError as error:
        raise InputError(f"--epsilon {args.epsilon:g}: {error}") from error
    budget = {key: getattr(args, key) for key in ("epsilon", "delta", "accountant", "max_grad_norm")}
    return budget | {"sample_rate": sample_rate, "steps": steps, "noise_multiplier": noise, "spent_epsilon": spent}


def dp_settings(args: cli.Namespace, privacy: dict[str, Any]) -> DPSettings:
    """Return the trainer's settings for the flags and a plan."""
    return DPSettings(
        steps=privacy["steps"],
        batch_size=args.batch_size,
        sample_rate=privacy["sample_rate"],
        noise_multiplier=privacy["noise_multiplier"],
        max_grad_norm=args.max_grad_norm,
        optimizer=args.optimizer,
        lr=args.lr,
        momentum=args.momentum,
        lr_drops=tuple(round(share * privacy["steps"]) for share in args.lr_drops),
        lr_drop_factor=args.lr_drop_factor,
        seed=args.seed,
        order_seed=seeds_of(args)["order"],
        noise_seed=seeds_of(args)["noise"],
        grad_sample_mode=args.grad_sample_mode,
        max_physical_batch_size=args.max_physical_batch_size,
    )


class EpochLog:
    """A progress bar over the steps and a line per epoch with loss, accuracy and epsilon spent.

    Loss and accuracy are means over the epoch's batches before each step; they are not private.

    Args:
        name: What is trained.
        privacy: The plan of `plan_privacy`.
        epochs: Number of epochs.
    """

    def __init__(self, name: str, privacy: dict[str, Any], epochs: int) -> None:
        self._privacy = privacy
        self._ends = {round(epoch * privacy["steps"] / epochs): epoch for epoch in range(1, epochs + 1)}
        self._epochs = epochs
        self._bar = cli.progress(privacy["steps"], name, "steps")
        self._steps: list[Step] = []

    def __enter__(self) -> EpochLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self._bar.close()

    def __call__(self, step: Step) -> None:
        """Note a step."""
        self._steps.append(step)
        self._bar.update(step.number - self._bar.n)
        if step.number in self._ends:
            size = max(1, sum(step.size for step in self._steps))
            loss, correct = (float(sum(getattr(s, key) for s in self._steps)) / size for key in ("loss", "correct"))
            write = self._bar.write if sys.stderr.isatty() else partial(print, flush=True)
            write(
                f"epoch {self._ends[step.number]}/{self._epochs}: loss {loss:.4f}, accuracy {correct:.4f}, "
                f"epsilon {self._spent(step.number):.4g} of {self._privacy['epsilon']:g} spent"
            )
            self._steps = []

    def _spent(self, steps: int) -> float:
        """Return a quick bound: a wider bin or the Renyi one, but at the end what was calibrated."""
        plan = self._privacy
        if steps == plan["steps"]:
            return plan["spent_epsilon"]
        accountant = "pld" if plan["accountant"] == "pld" else "rdp"
        interval = 10 * pld_interval(plan["epsilon"])
        rate, noise = plan["sample_rate"], plan["noise_multiplier"]
        return min(plan["spent_epsilon"], spent_epsilon(noise, rate, steps, plan["delta"], accountant, interval))
