"""Several small networks trained in one step each: parameters stacked, every network with its own batches.

A step of one small network is too little work for a GPU, which then waits for the next launch. Stacked under
torch.func, R networks take the launches of one. Each has the batches, the learning rate and the momentum that
`libtrain.training.train_sgd` gives it alone, so that its weights are the same up to float32 rounding, which a training
amplifies from step to step. On a CPU it is slower than one by one (LeNet 1.4 times, the small CNN 1.1 times).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vmap

from libstore.errors import InputError
from libtrain.optimizers import eager
from libtrain.precision import logits_of, multiplying
from libtrain.settings import SGDSettings
from libtrain.streams import NETWORK, ORDER, seeded, stream_seed
from libtrain.training import check_batches
from libtrain.unfinished import Unfinished


def train_together(
    models: Sequence[nn.Module],
    images: Tensor,
    labels: Tensor,
    rows: Tensor,
    settings: SGDSettings,
    *,
    seed: int,
    runs: Sequence[int],
    unfinished: Unfinished,
    on_epoch: Callable[[int], object] | None = None,
) -> None:
    """Train networks of one kind in place; a killed or stopped call, made again, ends in the same weights bit for bit.

    Args:
        models: R networks on the device of the data, alike but for their weights, in the mode in which to train them.
        images: Inputs of all examples, shape (N, ...), on one device.
        labels: Classes, int64, shape (N,), on the same device.
        rows: The examples that each trains on, int64, shape (R, n), on any device.
        settings: The optimiser's settings.
        seed: Seed of the ensemble.
        runs: Numbers of the runs, (R,); each decides the order of its batches as in `train_sgd`.
        unfinished: The state of all of them, asked for before every epoch; what it holds is gone on with.
        on_epoch: Called with the number of finished epochs, at the start and after each.

    Raises:
        Stopped: It was asked to stop; the state is saved.
        InputError: The networks cannot be stacked, a loss is not finite, or the state belongs to other settings.
    """
    model, device, n = models[0], images.device, rows.shape[1]
    check_stackable(model, check_batches(model, images, labels, settings.batch_size, n))
    own = [dict(one.named_parameters()) for one in models]
    stacked = {
        name: torch.stack([parameters[name].detach() for parameters in own]).requires_grad_(parameter.requires_grad)
        for name, parameter in own[0].items()
    }
    optimizer = eager(torch.optim.SGD)(
        [value for value in stacked.values() if value.requires_grad],
        lr=settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay,
    )  # fmt: skip
    steps = settings.epochs * math.ceil(n / settings.batch_size)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    done = 0
    if kept := unfinished.read():
        optimizer.load_state_dict(kept["optimizer"])
        scheduler.load_state_dict(kept["scheduler"])
        with torch.no_grad():
            for name, value in stacked.items():
                value.copy_(kept["stacked"][name])
        done = kept["epochs_done"]
    if on_epoch:
        on_epoch(done)

    def forward(parameters: dict[str, Tensor], batch: Tensor) -> Tensor:
        return functional_call(model, parameters, (batch,))

    def state() -> dict[str, Any]:
        weights = {name: value.detach() for name, value in stacked.items()}
        parts = {"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}
        return {"stacked": weights, "epochs_done": done, **parts}

    while done < settings.epochs:
        unfinished.pause(state, f"epoch {done} of {settings.epochs}")
        orders = [torch.Generator().manual_seed(stream_seed(seed, run, ORDER, done)) for run in runs]
        order = torch.stack([row[torch.randperm(n, generator=g)] for row, g in zip(rows.cpu(), orders, strict=True)])
        totals = torch.zeros(len(models), device=device)
        with seeded(stream_seed(seed, runs[0], NETWORK, done), device), multiplying(settings.precision):
            for batch in order.to(device).split(settings.batch_size, 1):
                optimizer.zero_grad()
                logits = logits_of(lambda x: vmap(forward)(stacked, x), images[batch], settings.precision)
                losses = F.cross_entropy(logits.flatten(0, 1), labels[batch].flatten(), reduction="none")
                means = losses.view(batch.shape).mean(1)
                means.sum().backward()
                optimizer.step()
                scheduler.step()
                totals += means.detach()
        done += 1
        if not (finite := torch.isfinite(totals)).all():
            run = runs[int((~finite).nonzero()[0])]
            raise InputError(f"run {run}: the loss is not finite in epoch {done}; lower --lr (now {settings.lr})")
        if on_epoch:
            on_epoch(done)
    with torch.no_grad():
        for name, value in stacked.items():
            for parameters, trained in zip(own, value, strict=True):
                parameters[name].copy_(trained)


def check_stackable(model: nn.Module, draws: bool) -> None:
    """Refuse a network whose copies cannot be trained together.

    Raises:
        InputError: It draws random numbers, or has buffers, such as the statistics of BatchNorm.
    """
    where = type(model).__name__
    if draws:
        raise InputError(f"--together: {where} draws random numbers in training, which each run has its own of")
    for name, _ in model.named_buffers():
        raise InputError(f"--together: {where} has a buffer, {name}, that is not trained; leave --together out")
