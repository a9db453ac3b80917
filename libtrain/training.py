"""Plain (non-private) training of one network, deterministic and resumable."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from libmodels.checkpoints import read_checkpoint, to_bytes
from libstore.errors import InputError
from libstore.store import Output
from libtrain.self_check import check_trainable
from libtrain.streams import INIT as INIT
from libtrain.streams import NETWORK, ORDER, check_stream, evaluating, seeded, stream_seed


@dataclass(frozen=True)
class SGDSettings:
    """Stochastic gradient descent with momentum and a cosine schedule to zero.

    Attributes:
        epochs: Passes over the training examples.
        batch_size: Examples of a step; the last batch of an epoch may be smaller.
        lr: Learning rate of the first step.
        momentum: Heavy-ball momentum.
        weight_decay: Coefficient of the L2 penalty.
    """

    epochs: int
    batch_size: int
    lr: float
    momentum: float
    weight_decay: float


def train_sgd(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    settings: SGDSettings,
    *,
    seed: int,
    run: int,
    state: Output,
    made_by: Mapping[str, Any] | None = None,
    save_every: float = 60.0,
    on_epoch: Callable[[int], object] | None = None,
    stopping: Callable[[], object] = lambda: False,
) -> bool:
    """Train a network in place; a killed call, made again, ends in the same weights bit for bit.

    Args:
        model: Network on the device of the data, in the mode in which it is to be trained.
        images: Inputs, shape (N, C, H, W), on one device.
        labels: Classes, int64, shape (N,), on the same device.
        settings: The optimiser's settings.
        seed: Seed of the ensemble.
        run: Number of the run; (seed, run, epoch) decide the order of the batches and what the network draws.
        state: Where the unfinished state is kept; the caller removes it once the result is saved.
        made_by: Provenance of that state.
        save_every: Seconds between two saved states; 0 saves after every epoch.
        on_epoch: Called with the number of finished epochs, at the start and after each.
        stopping: Asked after every epoch; when true, the state is saved and the training left.

    Returns:
        Whether all epochs are done; false after a stop.

    Raises:
        InputError: The loss is not finite, the unfinished state belongs to other settings, or the network cannot be
            trained on such inputs.
    """
    draws = check_trainable(model, images[: settings.batch_size], labels[: settings.batch_size])
    optimizer = torch.optim.SGD(
        model.parameters(), lr=settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay
    )
    steps_per_epoch = math.ceil(len(labels) / settings.batch_size)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.epochs * steps_per_epoch)
    done = 0
    if state.finished():
        kept = read_checkpoint(state.path)
        check_stream(draws, kept, state.path)
        model.load_state_dict(kept["model"])
        optimizer.load_state_dict(kept["optimizer"])
        scheduler.load_state_dict(kept["scheduler"])
        done = kept["epochs_done"]
    saved = time.monotonic()
    if on_epoch:
        on_epoch(done)
    for epoch in range(done, settings.epochs):
        order = torch.Generator().manual_seed(stream_seed(seed, run, ORDER, epoch))
        total = torch.zeros((), device=images.device)
        with seeded(stream_seed(seed, run, NETWORK, epoch), images.device):
            for batch in torch.randperm(len(labels), generator=order).to(images.device).split(settings.batch_size):
                optimizer.zero_grad()
                loss = F.cross_entropy(model(images[batch]), labels[batch])
                loss.backward()
                optimizer.step()
                scheduler.step()
                total += loss.detach()
        if not torch.isfinite(total):
            raise InputError(f"run {run}: the loss is not finite in epoch {epoch + 1}; lower --lr (now {settings.lr})")
        last = epoch + 1 == settings.epochs
        stop = stopping() and not last
        if stop or (not last and time.monotonic() - saved >= save_every):
            unfinished = {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "scheduler": scheduler.state_dict(),
                "epochs_done": epoch + 1,
                "network_stream": NETWORK,
            }
            state.save(to_bytes(unfinished), made_by or {})
            saved = time.monotonic()
        if on_epoch:
            on_epoch(epoch + 1)
        if stop:
            return False
    return True


@torch.inference_mode()
def predict(model: nn.Module, images: Tensor, labels: Tensor, batch_size: int = 1000) -> tuple[np.ndarray, np.ndarray]:
    """Evaluate a network on examples.

    Args:
        model: Network on the device of the data, in any mode.
        images: Inputs, shape (N, C, H, W).
        labels: Classes, int64, shape (N,).
        batch_size: Examples per forward pass.

    Returns:
        Whether the largest logit is the label's, bool (N,), and the label's probability, float32 (N,).
    """
    correct, prob = [], []
    with evaluating(model), seeded(0, images.device):
        for x, y in zip(images.split(batch_size), labels.split(batch_size), strict=True):
            logits = model(x)
            correct.append(logits.argmax(1) == y)
            prob.append(logits.softmax(1).gather(1, y[:, None])[:, 0])
    return torch.cat(correct).cpu().numpy(), torch.cat(prob).float().cpu().numpy()


@torch.inference_mode()
def example_losses(model: nn.Module, images: Tensor, labels: Tensor, batch_size: int = 1000) -> np.ndarray:
    """Return the cross-entropy of every example, float32 (N,); arguments as for `predict`."""
    parts = zip(images.split(batch_size), labels.split(batch_size), strict=True)
    with evaluating(model), seeded(0, images.device):
        return torch.cat([F.cross_entropy(model(x), y, reduction="none") for x, y in parts]).float().cpu().numpy()
