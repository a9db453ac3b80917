"""Plain (non-private) training of one network, deterministic and resumable."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from libdata.datasets import Dataset
from libscores.curvature import full_precision
from libscores.logit_scores import log_odds
from libscores.one_channel import fast_gradients_by_gray_images
from libstore.errors import InputError
from libstore.fz import VALUES, RunArrays
from libtrain.optimizers import eager
from libtrain.precision import logits_of, multiplying
from libtrain.recording import Recorder
from libtrain.self_check import check_trainable
from libtrain.settings import SGDSettings
from libtrain.streams import NETWORK, ORDER, check_stream, evaluating, seeded, stream_seed
from libtrain.unfinished import Unfinished


def train_sgd(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    settings: SGDSettings,
    *,
    seed: int,
    run: int,
    unfinished: Unfinished,
    on_epoch: Callable[[int], object] | None = None,
    recorder: Recorder | None = None,
) -> None:
    """Train a network in place; a killed or stopped call, made again, ends in the same weights bit for bit.

    Args:
        model: Network on the device of the data, in the mode in which it is to be trained.
        images: Inputs, shape (N, ...), on one device.
        labels: Classes, int64, shape (N,), on the same device.
        settings: The optimiser's settings.
        seed: Seed of the ensemble.
        run: Number of the run; (seed, run, epoch) decide the order of the batches and what the network draws.
        unfinished: Its state, asked for before every epoch; what it holds is gone on with.
        on_epoch: Called with the number of finished epochs, at the start and after each.
        recorder: Is shown every batch and epoch; it changes nothing.

    Raises:
        Stopped: It was asked to stop; the state is saved.
        InputError: The loss is not finite, the unfinished state belongs to other settings, or the network cannot be
            trained on such inputs.
    """
    draws = check_batches(model, images, labels, settings.batch_size, len(labels))
    optimizer = eager(torch.optim.SGD)(
        model.parameters(), lr=settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay
    )
    steps_per_epoch = math.ceil(len(labels) / settings.batch_size)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.epochs * steps_per_epoch)
    parts: dict[str, Any] = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
    done = 0
    if kept := unfinished.read():
        check_stream(draws, kept, unfinished.output.path)
        for name, part in parts.items():
            part.load_state_dict(kept[name])
        done = kept["epochs_done"]
        if recorder:
            recorder.load(kept["recorded"])
    if on_epoch:
        on_epoch(done)

    def state() -> dict[str, Any]:
        kept = {name: part.state_dict() for name, part in parts.items()}
        recorded = {"recorded": recorder.state()} if recorder else {}
        return {**kept, "epochs_done": done, "network_stream": NETWORK, **recorded}

    while done < settings.epochs:
        unfinished.pause(state, f"epoch {done} of {settings.epochs}")
        order = torch.Generator().manual_seed(stream_seed(seed, run, ORDER, done))
        total = torch.zeros((), device=images.device)
        with (
            seeded(stream_seed(seed, run, NETWORK, done), images.device),
            multiplying(settings.precision),
            fast_gradients_by_gray_images(model),
        ):
            for batch in torch.randperm(len(labels), generator=order).to(images.device).split(settings.batch_size):
                optimizer.zero_grad()
                inputs = recorder.inputs(images[batch]) if recorder else images[batch]
                logits = logits_of(model, inputs, settings.precision)
                loss = F.cross_entropy(logits, labels[batch])
                loss.backward()
                if recorder:
                    recorder.batch(done, batch, logits)
                optimizer.step()
                scheduler.step()
                total += loss.detach()
        if recorder:
            recorder.end_epoch(done, model)
        done += 1
        if not torch.isfinite(total):
            raise InputError(f"run {run}: the loss is not finite in epoch {done}; lower --lr (now {settings.lr})")
        if on_epoch:
            on_epoch(done)


def check_batches(model: nn.Module, images: Tensor, labels: Tensor, batch_size: int, n_train: int) -> bool:
    """Try a network on a whole batch and on the last one of an epoch, which is smaller; see `check_trainable`.

    Args:
        model: The network; it is not changed.
        images: Some inputs, shape (N, ...).
        labels: Their classes.
        batch_size: Examples of a step.
        n_train: Number of training examples.

    Returns:
        Whether the network draws random numbers.
    """
    sizes = (min(batch_size, n_train), n_train % batch_size or batch_size)
    return any([check_trainable(model, images[:size], labels[:size]) for size in sizes])


@torch.inference_mode()
def evaluate(model: nn.Module, images: Tensor, labels: Tensor, batch_size: int = 500) -> dict[str, np.ndarray]:
    """Evaluate a network on examples.

    Args:
        model: Network, in any mode.
        images: Inputs, shape (N, ...).
        labels: Classes, int64, shape (N,).
        batch_size: Examples per forward pass.

    Returns:
        Of each example, shape (N,): "correctness", whether the largest logit is the label's, bool; "prob", the label's
        probability, "logodds", ln(prob / (1 - prob)) taken from the logits, and "loss", the cross-entropy, float32.
    """
    device = next(model.parameters(), images).device
    parts: dict[str, list[Tensor]] = {"correctness": [], "prob": [], "logodds": [], "loss": []}
    with evaluating(model), seeded(0, device), full_precision(), torch.autocast(device.type, enabled=False):
        for x, y in zip(images.split(batch_size), labels.split(batch_size), strict=True):
            x, y = x.to(device), y.to(device)
            logits = model(x)
            parts["correctness"].append(logits.argmax(1) == y)
            parts["prob"].append(logits.softmax(1).gather(1, y[:, None])[:, 0].float())
            parts["logodds"].append(log_odds(logits.float(), y))
            parts["loss"].append(F.cross_entropy(logits, y, reduction="none").float())
    return {name: torch.cat(values).cpu().numpy() for name, values in parts.items()}


def predict(model: nn.Module, images: Tensor, labels: Tensor, batch_size: int = 500) -> tuple[np.ndarray, np.ndarray]:
    """Return "correctness" and "prob" of `evaluate`."""
    found = evaluate(model, images, labels, batch_size)
    return found["correctness"], found["prob"]


def run_arrays(model: nn.Module, data: Dataset, test: Dataset, rows: np.ndarray) -> tuple[RunArrays, np.ndarray]:
    """Assemble what is kept of a trained network.

    Args:
        model: The network.
        data: The training-split examples of the study.
        test: The test split.
        rows: Rows of `data` that it was trained on, sorted.

    Returns:
        Its arrays, and its loss on every test example, float32.
    """
    groups = {"train": rows, "removed": np.setdiff1d(np.arange(len(data)), rows)}
    here, there = (evaluate(model, part.images, part.labels) for part in (data, test))
    arrays = RunArrays(
        index={group: data.index[of] for group, of in groups.items()} | {"test": test.index},
        subsample_idx=data.index[rows],
        **{kind: {group: here[kind][of] for group, of in groups.items()} | {"test": there[kind]} for kind in VALUES},
    )
    return arrays, there["loss"]
