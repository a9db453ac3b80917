"""The data of a private training, the plan of its noise, what a sidecar says of both, and a log of its steps."""

from __future__ import annotations

import libcli as cli

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch

from libdata.choice import DataChoice
from libdata.datasets import Dataset, dataset_size, load_splits
from libmodels.checkpoints import ModelSpec
from libmodels.networks import Network
from libscores.accounting import calibrate_noise_multiplier, pld_interval, spent_epsilon
from libstore.errors import InputError
from libstore.index import check_index_content, drawn, index_digest, read_index
from libstore.remembered import remembered
from libtrain.dp_training import DPTrainer, Step, seeded_model
from libtrain.self_check import check_results
from libtrain.settings import DPSettings, PrivacyPlan, StudySettings

FORMAT = 1
"""To be raised when the accounting changes; calibrations of another format are made anew."""


@dataclass(frozen=True)
class Study:
    """The data of a private training, and the network.

    Attributes:
        data: The training-split examples of the study.
        load_test: Loads the test split.
        rows: The rows of `data` to train on, sorted, int64, shape (N,).
        spec: The network.
        planned: Number of examples that sample rate, noise and steps are planned for: N and those left out, or what
            the subset's sidecar says.
        drawn: How its sidecar says that the subset was drawn, None where there is none.
    """

    data: Dataset
    load_test: Callable[[], Dataset]
    rows: np.ndarray
    spec: ModelSpec
    planned: int
    drawn: str | None = None

    @cached_property
    def test(self) -> Dataset:
        """The test split, which a finished training does without."""
        return self.load_test()

    def describe(self, settings: DPSettings) -> dict[str, Any]:
        """Return what decides the weights of a training, as a sidecar says it."""
        return settings.describe() | {
            "data": self.data.identity(),
            "train_on": {
                "n_examples": len(self.rows),
                "planned": self.planned,
                "index_sha256": index_digest(self.data.index[self.rows]),
            },
            "model": self.spec.describe(),
        }

    def trainer(self, settings: DPSettings, plan: PrivacyPlan, device: torch.device) -> DPTrainer:
        """Return the training at its first step.

        Raises:
            InputError: The network is not for private training, gives examples no results of their own, or the test
                split cannot be read.
        """
        _ = self.test
        model = seeded_model(self.spec, settings.stream("init")).to(device)
        images, labels = self.data.images.to(device), self.data.labels.to(device)
        trainer = DPTrainer(model, images, labels, settings, plan, torch.from_numpy(self.rows))
        check_results(seeded_model(self.spec, settings.stream("init")).to(device), images, labels)
        return trainer


def load_study(
    choice: DataChoice,
    network: Network,
    study: StudySettings,
    settings: DPSettings,
    data_dir: Path,
    leave_out: np.ndarray | None = None,
    like: Study | None = None,
) -> Study:
    """Load the data and check the settings against them.

    Args:
        choice: The data set.
        network: The network.
        study: Which of its examples.
        settings: How they will be trained on.
        data_dir: Where the built-in data sets are.
        leave_out: Positions not to train on, each among the training examples; none by default. Sample rate, noise
            and number of steps stay those of a training with them.
        like: A study that differs in `train_subset` alone, whose data are taken; by default they are loaded.

    Raises:
        InputError: An index is out of range, repeated or outside the study; the batch size is over N; delta is
            1/N or more and not allowed to be; the data cannot be read.
    """
    size = dataset_size(choice.dataset, "train", data_dir)
    index = np.sort(read_index(study.data_subset, size))
    train_index = index
    if study.train_subset is not None:
        train_index = np.sort(read_index(study.train_subset, size, "--train_subset"))
    outside = train_index[~np.isin(train_index, index)]
    if outside.size:
        raise InputError(
            f"--train_subset {study.train_subset}: example {outside[0]} is not in --data_subset {study.data_subset}"
        )
    how = drawn(study.train_subset)
    planned = how.planned or len(train_index)
    if leave_out is not None:
        absent = leave_out[~np.isin(leave_out, train_index)]
        if absent.size:
            raise InputError(f"point {absent[0]} cannot be left out: it is not among the training examples")
        train_index = np.setdiff1d(train_index, leave_out)
    n_train = len(train_index)
    if settings.batch_size > n_train:
        raise InputError(f"--batch_size {settings.batch_size}: there are only {n_train} training examples")
    if settings.delta >= 1 / n_train and not study.allow_large_delta:
        raise InputError(
            f"--delta {settings.delta:g} is at least 1/N = 1/{n_train}: such a guarantee may reveal whole examples; "
            "take a smaller one or add --allow_large_delta"
        )
    if like is None:
        data, load_test, image_size = load_splits(choice, data_dir, index, study.normalization, network.image_size)
        spec = ModelSpec.for_dataset(network, data, image_size)
    else:
        data, load_test, spec = like.data, lambda: like.test, like.spec
    for subset in (study.data_subset, study.train_subset):
        if subset is not None:
            check_index_content(subset, data.content_sha256)
    return Study(data, load_test, np.searchsorted(index, train_index), spec, planned, how.how)


def plan_privacy(settings: DPSettings, n_planned: int, folder: Path) -> PrivacyPlan:
    """Calibrate the noise for so many training examples, or take what was calibrated before.

    Args:
        settings: The budget and the optimization.
        n_planned: The number of training examples.
        folder: Where calibrations are kept (`libstore.remembered`).

    Raises:
        InputError: No noise multiplier gives the budget.
    """
    rate, steps = settings.batch_size / n_planned, settings.steps(n_planned)
    budget = (settings.epsilon, settings.delta, rate, steps, settings.accountant)
    try:
        found = _calibrated(folder, settings, rate, steps, lambda: list(calibrate_noise_multiplier(*budget)))
    except ValueError as error:
        raise InputError(f"--epsilon {settings.epsilon:g}: {error}") from error
    return PrivacyPlan(rate, steps, *found)


def _calibrated(
    folder: Path, settings: DPSettings, rate: float, steps: int, compute: Callable[[], list[float]]
) -> list[float]:
    key = _key("noise multiplier", settings.epsilon, settings.delta, rate, steps, settings.accountant)
    return remembered(folder, key, compute)


def _key(what: str, epsilon: float, delta: float, rate: float, steps: int, accountant: str) -> dict[str, Any]:
    package = "opacus" if accountant == "prv" else "dp-accounting"
    numbers = {"epsilon": epsilon, "delta": delta, "sample_rate": rate, "steps": steps}
    return {"what": what, "accountant": accountant, "format": FORMAT, package: version(package), **numbers}


class EpochLog:
    """A progress bar over the steps and a line per epoch with loss, accuracy and epsilon spent.

    Loss and accuracy are means over the epoch's batches before each step; they are not private.

    Args:
        name: What is trained.
        settings: How.
        plan: The noise.
        folder: Where calibrations are kept.
    """

    def __init__(self, name: str, settings: DPSettings, plan: PrivacyPlan, folder: Path) -> None:
        self._settings, self._plan, self._folder, epochs = settings, plan, folder, settings.epochs
        self._ends = {round(epoch * plan.steps / epochs): epoch for epoch in range(1, epochs + 1)}
        self._bar = cli.progress(plan.steps, name, "steps")
        self._steps: list[Step] = []

    def __enter__(self) -> EpochLog:
        plan = self._plan  # kept only now, when nothing is refused any more
        if plan.spent_epsilon <= self._settings.epsilon:
            found = [plan.noise_multiplier, plan.spent_epsilon]
            _calibrated(self._folder, self._settings, plan.sample_rate, plan.steps, lambda: found)
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
                f"epoch {self._ends[step.number]}/{self._settings.epochs}: loss {loss:.4f}, accuracy {correct:.4f}, "
                f"epsilon {self._spent[step.number]:.4g} of {self._settings.epsilon:g} spent"
            )
            self._steps = []

    @cached_property
    def _spent(self) -> dict[int, float]:
        """What is spent at each epoch's end, by a quick bound (wider bins, or Renyi's); at the last as calibrated."""
        plan, settings = self._plan, self._settings
        accountant, interval = "pld" if settings.accountant == "pld" else "rdp", 10 * pld_interval(settings.epsilon)

        def after(steps: int) -> float:
            if steps == plan.steps:
                return plan.spent_epsilon
            spent = spent_epsilon(plan.noise_multiplier, plan.sample_rate, steps, settings.delta, accountant, interval)
            return min(plan.spent_epsilon, spent)

        key = _key("spent", settings.epsilon, settings.delta, plan.sample_rate, plan.steps, settings.accountant)
        noise = {"noise_multiplier": plan.noise_multiplier, "spent_epsilon": plan.spent_epsilon}
        ends = list(self._ends)
        found = remembered(self._folder, {**key, **noise, "ends": ends}, lambda: [after(end) for end in ends])
        return dict(zip(ends, found, strict=True))
