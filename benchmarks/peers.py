"""Opacus's own ways to take private steps, on data in memory, for benchmarks that set ours beside them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def opacus_steps(
    mode: str,
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    batch_size: int,
    *,
    noise_multiplier: float = 1.0,
    lr: float = 1e-3,
    cast: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Callable[[int], int]:
    """Return a function that takes noisy RMSprop steps on Poisson batches as Opacus does and counts the examples.

    Args:
        mode: "hooks", per-sample gradients in memory, or "ghost", norms first and a second backward pass.
        model: The network, on the device of the data.
        images: Inputs, (N, ...).
        labels: Classes, (N,).
        batch_size: Expected examples of a step.
        noise_multiplier: Standard deviation of the noise over the clipping norm, which is 1.
        lr: Learning rate.
        cast: Entered around every forward pass.
    """
    from opacus.grad_sample import GradSampleModule, GradSampleModuleFastGradientClipping
    from opacus.optimizers import DPOptimizer, DPOptimizerFastGradientClipping
    from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping

    arguments: dict[str, Any] = {"max_grad_norm": 1.0, "noise_multiplier": noise_multiplier}
    inner = torch.optim.RMSprop(model.parameters(), lr=lr)
    criterion: Any = nn.CrossEntropyLoss()
    if mode == "hooks":
        private: Any = GradSampleModule(model)
        optimizer: Any = DPOptimizer(inner, expected_batch_size=batch_size, **arguments)
    else:
        private = GradSampleModuleFastGradientClipping(model, max_grad_norm=1.0, use_ghost_clipping=True)
        optimizer = DPOptimizerFastGradientClipping(inner, expected_batch_size=batch_size, **arguments)
        criterion = DPLossFastGradientClipping(private, optimizer, criterion)
    draw = torch.Generator().manual_seed(0)
    rate = batch_size / len(labels)

    def take(steps: int) -> int:
        examples = 0
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Full backward hook is firing")
            for _ in range(steps):
                rows = (torch.rand(len(labels), generator=draw) < rate).nonzero()[:, 0].to(images.device)
                optimizer.zero_grad()
                with cast():
                    logits = private(images[rows])
                criterion(logits.float(), labels[rows]).backward()
                optimizer.step()
                examples += len(rows)
        return examples

    return take


def plain_steps(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    batch_size: int,
    *,
    lr: float = 1e-3,
    cast: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Callable[[int], int]:
    """Return a function that takes plain RMSprop steps, without privacy, and counts the examples; as `opacus_steps`."""
    optimizer = torch.optim.RMSprop(model.parameters(), lr=lr)

    def take(steps: int) -> int:
        for _ in range(steps):
            optimizer.zero_grad()
            with cast():
                logits = model(images[:batch_size])
            F.cross_entropy(logits.float(), labels[:batch_size]).backward()
            optimizer.step()
        return steps * batch_size

    return take
