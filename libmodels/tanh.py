"""The hyperbolic tangent on a CPU, many times as fast as PyTorch's where that is MKL's."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils._python_dispatch import is_in_torch_dispatch_mode


class Tanh(nn.Tanh):
    """What nn.Tanh computes; of float32 numbers on a CPU within two units in the last place.

    There PyTorch calls MKL in its most accurate mode, which on an AMD processor took 2.0 ns a number where NumPy took
    0.16: a fifth of a training step of `SmallCNN`. Whatever looks into the computation (`torch.func`, forward-mode
    derivatives, tracing, compiling) sees PyTorch's own.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return tanh of every number, in the shape of `input`."""
        fast = type(input) is Tensor and input.device.type == "cpu" and input.dtype == torch.float32
        return _Tanh.apply(input) if fast and not _looked_into() else torch.tanh(input)


def _looked_into() -> bool:
    return (
        torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
        or torch.jit.is_tracing()
        or torch.compiler.is_compiling()
        or is_in_torch_dispatch_mode()
    )


class _Tanh(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = torch.empty_like(x)
        np.tanh(x.numpy(), out=y.numpy())
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return torch.ops.aten.tanh_backward(gradient, *ctx.saved_tensors)
