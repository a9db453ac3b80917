"""One private network: what is there of it, its training, and its results on all examples."""

from __future__ import annotations

import libcli as cli

import time
from dataclasses import dataclass, field
from pathlib import Path

import torch

from libmodels.checkpoints import model_bytes
from libmodels.devices import describe_device
from libstore.comparable import trained
from libstore.private_models import FORMAT
from libstore.store import Output, arrays_bytes, exclusive, made_before, provenance, sha256
from libtrain.dp_training import kept_plan, train_private
from libtrain.private_study import EpochLog, Study, plan_privacy
from libtrain.settings import DPSettings
from libtrain.training import run_arrays
from libtrain.unfinished import Unfinished


@dataclass(frozen=True)
class DPTraining:
    """The training of one network, to files in a folder.

    Attributes:
        study: What it is trained on.
        dp: How.
        folder: Where weights, arrays and the unfinished state are; calibrations are beside it.
        suffix: End of the folder's name.
        device: Where to train.
        save_every: Seconds between saved states of an unfinished training.
        anew: Do not go on from such a state.
        overwrite: Replace results made with other settings.
        finished: Whether weights and arrays were there when this was made.

    Raises:
        InputError: The folder holds results of other settings.
    """

    study: Study
    dp: DPSettings
    folder: Path
    suffix: str
    device: torch.device
    save_every: float
    anew: bool
    overwrite: bool
    finished: bool = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "finished", trained(*self._outputs(), overwrite=self.overwrite))

    def _outputs(self) -> tuple[Output, Output]:
        """Return weights and arrays."""
        settings = self.study.describe(self.dp) | {"suffix": self.suffix}
        weights, arrays = (Output(self.folder / file, settings, FORMAT) for file in ("model.pt", "aux_arrays.npz"))
        return weights, arrays

    def train(self) -> int:
        """Do what is missing; return the signal that came too late to stop it, else 0.

        Raises:
            Stopped: It was asked to stop; the unfinished state is saved.
            InputError: The training is refused or diverged.
        """
        study, dp, folder = self.study, self.dp, self.folder
        weights, arrays = self._outputs()
        state = Output(folder / "state.pt", {**weights.settings, "device": self.device.type}, FORMAT)
        calibrations, trainer = folder.parent / "calibrations", None
        if not self.finished:  # whatever is refused is refused before the folder is touched
            kept = None if self.anew else kept_plan(state)
            trainer = study.trainer(dp, kept or plan_privacy(dp, study.planned, calibrations), self.device)
        with exclusive(folder):
            if trainer is None or trained(weights, arrays, overwrite=self.overwrite):
                print(f"{folder}: finished before, skipped", flush=True)
                state.remove()
                return 0
            if self.anew:
                state.remove()
            started, how, plan = time.monotonic(), {"drawn": study.drawn} if study.drawn else {}, trainer.plan
            made_by = provenance(made_before(state.path), **describe_device(self.device), **how)
            with cli.stop_requests() as stopping, EpochLog(folder.name, dp, plan, calibrations) as log:
                unfinished = Unfinished(state, save_every=self.save_every, stopping=stopping, made_by=made_by)
                train_private(trainer, unfinished, report=log)
            privacy = plan.record(dp) | {"empty_batches": trainer.empty_batches}
            result, losses = run_arrays(trainer.model, study.data, study.test, study.rows)
            accuracy = float(result.correctness["test"].mean())
            outcome = {"test_loss": float(losses.mean(dtype=float)), "test_accuracy": accuracy}
            made_by |= {"seconds": round(time.monotonic() - started, 3), "privacy": privacy, "outcome": outcome}
            content = model_bytes(trainer.model, study.spec, privacy=privacy)
            arrays.save(arrays_bytes(**result.to_dict(), loss_test=losses), made_by, weights_sha256=sha256(content))
            weights.save(content, made_by)
            state.remove()
        spent = f"epsilon {plan.spent_epsilon:.4g} spent with noise multiplier {plan.noise_multiplier:g}"
        print(f"{folder}: test accuracy {accuracy:.4f}, loss {outcome['test_loss']:.4f}, {spent}", flush=True)
        return stopping()
