"""The hyperbolic tangent on a CPU, many times as fast as PyTorch's where that is MKL's."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


class Tanh(nn.Tanh):
    """What nn.Tanh computes, within two units in the last place on a CPU, and its bits elsewhere.

    There PyTorch calls MKL in its most accurate mode, which on an AMD processor took 2.0 ns a number where NumPy took
    0.16: a fifth of a training step of `SmallCNN`. All derivatives of PyTorch's and `torch.func` work through it.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return tanh of every number, in the shape of `input`."""
        on_cpu = input.device.type == "cpu" and input.dtype == torch.float32
        return _Tanh.apply(input) if on_cpu else torch.tanh(input)


class _Tanh(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor) -> Tensor:
        y = torch.empty_like(x)
        np.tanh(x.detach().numpy(), out=y.numpy())
        return y

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(output)
        ctx.save_for_forward(output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return torch.ops.aten.tanh_backward(gradient, *ctx.saved_tensors)

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        return torch.ops.aten.tanh_backward(tangent, *ctx.saved_tensors)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None], x: Tensor) -> tuple[Tensor, int | None]:
        return _Tanh.apply(x), in_dims[0]
