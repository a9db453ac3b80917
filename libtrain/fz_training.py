"""One run of a Feldman-Zhang-layout ensemble: a random subset, a network trained on it, its results on all examples."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from libdata.datasets import Dataset
from libmodels.checkpoints import ModelSpec, model_bytes
from libmodels.devices import describe_device
from libstore import trajectories
from libstore.errors import InputError
from libstore.fz import FORMAT, RunArrays
from libstore.store import Output, arrays_bytes, exclusive, file_sha256, made_before, provenance, read_sidecar, sha256
from libtrain.recording import Recorder, check_recordable
from libtrain.settings import RecordSettings, SGDSettings
from libtrain.streams import INIT, SUBSET, seeded, stream_seed
from libtrain.training import check_batches, run_arrays, train_sgd
from libtrain.unfinished import Unfinished


@dataclass(frozen=True)
class FZTraining:
    """What the runs of an ensemble share.

    Attributes:
        data: The examples, of which every run trains on a share.
        test: The test split.
        spec: The network.
        sgd: The optimiser's settings.
        ratio: Share of the examples a run trains on, in (0, 1).
        seed: Seed of the ensemble; (seed, run) decides a run.
        device: Where to train.
        save_every: Seconds between saved states of an unfinished run.
        record: What to keep of the examples on the way.

    Raises:
        InputError: Nothing would be left to train on or to remove, or the network cannot be trained on such inputs.
    """

    data: Dataset
    test: Dataset
    spec: ModelSpec
    sgd: SGDSettings
    ratio: float
    seed: int
    device: torch.device
    save_every: float
    record: RecordSettings = RecordSettings()

    def __post_init__(self) -> None:
        check_recordable(self.record, self.data.images)
        if not 0 < self.n_train < len(self.data):
            raise InputError(
                f"--ratio {self.ratio} of {len(self.data)} examples leaves nothing to train on or to remove"
            )
        few, model = self.sgd.batch_size, self._model(0).to(self.device)
        images, labels = (part[:few].to(self.device) for part in (self.data.images, self.data.labels))
        check_batches(model, images, labels, few, self.n_train)

    @property
    def n_train(self) -> int:
        """Number of examples a run trains on."""
        return round(self.ratio * len(self.data))

    def _model(self, run: int) -> nn.Module:
        with seeded(stream_seed(self.seed, run, INIT), torch.device("cpu")):
            return self.spec.build()

    def train(
        self,
        run: int,
        folder: Path,
        *,
        overwrite: bool,
        on_epoch: Callable[[int], object] | None = None,
        stopping: Callable[[], int] = lambda: 0,
    ) -> RunArrays | None:
        """Train one run and keep its checkpoint and arrays in `folder`; None if they were there already.

        Args:
            run: Number of the run.
            folder: <root>/<ratio>/<run>.
            overwrite: Replace results made with other settings.
            on_epoch: Called with the number of finished epochs.
            stopping: Returns the signal that asks to stop, else 0; asked after every epoch.

        Raises:
            Stopped: It was asked to stop; the unfinished state is saved.
            InputError: The folder holds results of other settings, or training diverged.
        """
        settings = {"seed": self.seed, "run": run, "ratio": self.ratio, "sgd": self.sgd.as_dict()}
        settings |= {"data": self.data.identity(), "model": self.spec.describe()}
        checkpoints = folder / "checkpoints"
        weights = Output(checkpoints / "model.pt", settings, FORMAT)
        arrays = Output(folder / "aux_arrays.npz", settings, FORMAT)
        trajectory = self._trajectory(folder, settings)
        state = Output(checkpoints / "state.pt", trajectory.settings if trajectory else settings, FORMAT)
        with exclusive(folder), exclusive(checkpoints):
            there = weights.finished(overwrite=overwrite) and arrays.finished(overwrite=overwrite)
            if there and (trajectory is None or trajectory.finished(overwrite=overwrite)):
                state.remove()
                return None
            if overwrite:
                state.remove()
            made_by, started = provenance(made_before(state.path), **describe_device(self.device)), time.monotonic()
            rng = np.random.default_rng(stream_seed(self.seed, run, SUBSET))
            rows = np.sort(rng.permutation(len(self.data))[: self.n_train])
            model = self._model(run).to(self.device)
            images, labels = (part[rows].to(self.device) for part in (self.data.images, self.data.labels))
            unfinished = Unfinished(state, save_every=self.save_every, stopping=stopping, made_by=made_by)
            recorder = Recorder(self.record, self.sgd.epochs, images, labels) if trajectory else None
            train_sgd(
                model, images, labels, self.sgd, seed=self.seed, run=run, unfinished=unfinished, on_epoch=on_epoch,
                recorder=recorder,
            )  # fmt: skip
            result, _ = run_arrays(model, self.data, self.test, rows)
            made_by["seconds"] = round(time.monotonic() - started, 3)
            content = model_bytes(model, self.spec)
            if there and sha256(content) != file_sha256(weights.path):
                raise InputError(
                    f"{weights.path}: trained again for --record, its weights came out otherwise (another machine or "
                    "version?); --overwrite replaces them, and then what was scored with them"
                )
            if not there:
                weights.save(content, made_by)
                arrays.save(arrays_bytes(**result.to_dict()), made_by, weights_sha256=sha256(content))
            if trajectory and recorder:
                recorded = arrays_bytes(index_train=self.data.index[rows], **recorder.arrays())
                trajectory.save(recorded, made_by, weights_sha256=sha256(content))
            state.remove()
        return result

    def _trajectory(self, folder: Path, settings: dict[str, Any]) -> Output | None:
        """Return where what is recorded goes; what is there with more than is asked for will do."""
        if not self.record.any:
            return None
        path, wanted = folder / trajectories.NAME, self.record.describe()
        if path.exists() and path.with_suffix(".json").exists():
            there = read_sidecar(path)["settings"].get("record", {})
            if all(there.get(key) or not value for key, value in wanted.items()):
                wanted = there
        return Output(path, settings | {"record": wanted}, trajectories.FORMAT)
