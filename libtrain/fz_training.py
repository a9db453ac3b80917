"""One run of a Feldman-Zhang-layout ensemble: a random subset, a network trained on it, its results on all examples."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from libdata.datasets import Dataset, check_same_content
from libmodels.checkpoints import ModelSpec, model_bytes
from libmodels.devices import describe_device
from libstore import trajectories
from libstore.comparable import RUNS, trained
from libstore.errors import InputError
from libstore.fz import FORMAT, RunArrays
from libstore.store import (
    Output,
    arrays_bytes,
    differences,
    exclusive,
    file_sha256,
    made_before,
    provenance,
    read_sidecar,
    sha256,
    tell,
)
from libtrain.recording import Recorder, check_recordable
from libtrain.self_check import N_EXAMPLES, check_results
from libtrain.settings import RecordSettings, SGDSettings
from libtrain.streams import INIT, SUBSET, seeded, stream_seed
from libtrain.together import check_stackable, train_together
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
        together: Runs to train in one step each, 1 for one by one.
        record: What to keep of the examples on the way.

    Raises:
        InputError: Nothing would be left to train on or to remove, or the network cannot be trained on such inputs
            or gives examples no results of their own.
    """

    data: Dataset
    test: Dataset
    spec: ModelSpec
    sgd: SGDSettings
    ratio: float
    seed: int
    device: torch.device
    save_every: float
    together: int = 1
    record: RecordSettings = RecordSettings()

    def __post_init__(self) -> None:
        check_recordable(self.record, self.data.images)
        if self.record.any and self.together > 1:
            raise InputError(f"--together {self.together}: what --record keeps takes networks one by one")
        if not 0 < self.n_train < len(self.data):
            raise InputError(
                f"--ratio {self.ratio} of {len(self.data)} examples leaves nothing to train on or to remove"
            )
        few, model = max(self.sgd.batch_size, N_EXAMPLES), self._model(0).to(self.device)
        images, labels = (part[:few].to(self.device) for part in (self.data.images, self.data.labels))
        draws = check_batches(model, images, labels, self.sgd.batch_size, self.n_train)
        if self.together > 1:
            check_stackable(model, draws)
        check_results(model, images, labels)

    def check_others(self, folder: Path, replaced: Collection[str] = (), *, overwrite: bool = False) -> None:
        """Refuse to add to an ensemble of other data or settings: all its runs are averaged, so none may differ.

        Args:
            folder: <root>/<ratio>, which need not be there.
            replaced: Names of the runs in it that are about to be replaced.
            overwrite: Other settings will do, as where the lines of a job file train an ensemble anew.

        Raises:
            InputError: A run is of other data, or its settings differ in more than run and seed.
        """
        for path in sorted(folder.glob("*/aux_arrays.json")):
            if path.parent.name in replaced:
                continue
            there = read_sidecar(path)
            check_same_content(self.data, there["settings"].get("data", {}), path.parent)
            found = [] if overwrite else differences(there, {"settings": self._settings(), "format": FORMAT}, RUNS)
            if found:
                told = tell(found, "{key}: {one} there, {other} asked for")
                raise InputError(
                    f"{path.parent}: made with other settings ({told}), so these runs would not make one ensemble; "
                    f"move {folder} away, or --overwrite all its runs"
                )

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
        weights, arrays = self._outputs(run, folder)
        trajectory = self._trajectory(folder, weights.settings)
        settings = trajectory.settings if trajectory else weights.settings
        state = Output(folder / "checkpoints" / "state.pt", settings, FORMAT)
        with exclusive(folder), exclusive(state.path.parent):
            there = trained(weights, arrays, overwrite=overwrite)
            if there and (trajectory is None or trajectory.finished(overwrite=overwrite)):
                state.remove()
                return None
            if overwrite:
                state.remove()
            made_by, started = provenance(made_before(state.path), **describe_device(self.device)), time.monotonic()
            rows = self._rows(run)
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
            digest = self._save(result, model, weights, arrays, made_by, kept=there)
            if trajectory and recorder:
                recorded = arrays_bytes(index_train=self.data.index[rows], **recorder.arrays())
                trajectory.save(recorded, made_by, weights_sha256=digest)
            state.remove()
        return result

    def train_together(
        self,
        runs: Sequence[int],
        folders: Sequence[Path],
        *,
        overwrite: bool,
        on_epoch: Callable[[int], object] | None = None,
        stopping: Callable[[], int] = lambda: 0,
    ) -> list[RunArrays | None]:
        """Train several runs in one step each (`libtrain.together`), all if one is missing; None for those there.

        The state of all is kept with the first. Arguments and exceptions are those of `train`, and whoever trained
        together is said in the provenance: like a device, it may change the last digits.
        """
        outputs = [self._outputs(run, folder) for run, folder in zip(runs, folders, strict=True)]
        shared = {**outputs[0][0].settings, "together": list(runs)}
        state = Output(folders[0] / "checkpoints" / f"state_{runs[0]}_to_{runs[-1]}.pt", shared, FORMAT)
        with ExitStack() as locks:
            for folder in folders:
                locks.enter_context(exclusive(folder))
                locks.enter_context(exclusive(folder / "checkpoints"))
            there = [trained(*pair, overwrite=overwrite) for pair in outputs]
            if all(there) or overwrite:
                state.remove()
            if all(there):
                return [None] * len(runs)
            made_by, started = provenance(made_before(state.path), **describe_device(self.device)), time.monotonic()
            made_by["together"] = list(runs)
            rows = np.stack([self._rows(run) for run in runs])
            models = [self._model(run).to(self.device) for run in runs]
            images, labels = (part.to(self.device) for part in (self.data.images, self.data.labels))
            unfinished = Unfinished(state, save_every=self.save_every, stopping=stopping, made_by=made_by)
            train_together(
                models, images, labels, torch.from_numpy(rows), self.sgd,
                seed=self.seed, runs=runs, unfinished=unfinished, on_epoch=on_epoch,
            )  # fmt: skip
            found = [
                None if kept else run_arrays(model, self.data, self.test, chosen)[0]
                for kept, model, chosen in zip(there, models, rows, strict=True)
            ]
            made_by["seconds"] = round((time.monotonic() - started) / len(runs), 3)
            for result, model, pair in zip(found, models, outputs, strict=True):
                if result is not None:
                    self._save(result, model, *pair, made_by)
            state.remove()
        return found

    def _settings(self) -> dict[str, Any]:
        """Return what the runs of the ensemble share."""
        settings = {"ratio": self.ratio, "sgd": self.sgd.as_dict()}
        return settings | {"data": self.data.identity(), "model": self.spec.describe()}

    def _outputs(self, run: int, folder: Path) -> tuple[Output, Output]:
        settings = {**self._settings(), "seed": self.seed, "run": run}
        paths = folder / "checkpoints" / "model.pt", folder / "aux_arrays.npz"
        weights, arrays = (Output(path, settings, FORMAT) for path in paths)
        return weights, arrays

    def _rows(self, run: int) -> np.ndarray:
        rng = np.random.default_rng(stream_seed(self.seed, run, SUBSET))
        return np.sort(rng.permutation(len(self.data))[: self.n_train])

    def _save(
        self, result: RunArrays, model: nn.Module, weights: Output, arrays: Output, made_by: dict[str, Any],
        kept: bool = False,
    ) -> str:  # fmt: skip
        """Save a run, or check that it came out as the one that is kept; return the digest of the weights."""
        content = model_bytes(model, self.spec)
        if kept and sha256(content) != file_sha256(weights.path):
            raise InputError(
                f"{weights.path}: trained again for --record, its weights came out otherwise (another machine or "
                "version?); --overwrite replaces them, and then what was scored with them"
            )
        if not kept:
            weights.save(content, made_by)
            arrays.save(arrays_bytes(**result.to_dict()), made_by, weights_sha256=sha256(content))
        return sha256(content)

    def _trajectory(self, folder: Path, settings: Mapping[str, Any]) -> Output | None:
        """Return where what is recorded goes; what is there with more than is asked for will do."""
        if not self.record.any:
            return None
        path, wanted = folder / trajectories.NAME, self.record.describe()
        if path.exists() and path.with_suffix(".json").exists():
            there = read_sidecar(path)["settings"].get("record", {})
            if all(there.get(key) or not value for key, value in wanted.items()):
                wanted = there
        return Output(path, {**settings, "record": wanted}, trajectories.FORMAT)
