"""What a computation has to itself and gives back: random streams, and the modes of a network's layers."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from libstore.errors import InputError

INIT, SUBSET, ORDER, NOISE, NETWORK = range(5)
"""Random streams of a run: initial weights, the training subset, the order of the batches, a private training's noise,
and what the network itself draws, such as the masks of dropout."""


def stream_seed(seed: int, run: int, stream: int, *more: int) -> int:
    """Return a 63-bit seed for one random stream of one run."""
    return int(np.random.SeedSequence([seed, run, stream, *more]).generate_state(1, np.uint64)[0] >> 1)


def generators(device: torch.device) -> list[torch.Generator]:
    """Return PyTorch's generators that a network on this device draws from when it names none."""
    found = [torch.default_generator]
    if device.type == "cuda":
        torch.cuda.init()
        index = torch.cuda.current_device() if device.index is None else device.index
        found.append(torch.cuda.default_generators[index])
    return found


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Give the code inside a stream of its own from the global generators (PyTorch's, NumPy's and Python's)."""
    ours = generators(device)
    states = [generator.get_state() for generator in ours]
    numbers, python = np.random.get_state(), random.getstate()  # noqa: NPY002
    try:
        for generator in ours:
            generator.manual_seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        random.seed(seed)
        yield
    finally:
        for generator, state in zip(ours, states, strict=True):
            generator.set_state(state)
        np.random.set_state(numbers)  # noqa: NPY002
        random.setstate(python)


def check_stream(draws: bool, kept: Mapping[str, Any], path: Path) -> None:
    """Refuse to go on with a network that draws random numbers from a state that was saved without their stream."""
    if draws and "network_stream" not in kept:
        raise InputError(
            f"{path}: saved before the masks of dropout had a seeded stream, so it cannot end in the same weights; "
            "remove it to start anew"
        )


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a network in evaluation mode, and every layer back in the mode it was in."""
    modes = [(layer, layer.training) for layer in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for layer, mode in modes:
            layer.training = mode
