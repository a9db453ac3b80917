"""How precisely a training multiplies. Scoring and evaluating are always in float32, and so is what bounds a gradient.

"float32" multiplies in float32, also where PyTorch's defaults would not (convolutions on a GPU). "tf32" rounds the
factors of products on a GPU to 10 bits; a CPU has no such products and works in float32. "bf16" computes activations
and their gradients in bfloat16 where PyTorch's autocast does. Weights, optimiser and noise are float32 in all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from libscores.curvature import full_precision


@contextmanager
def multiplying(precision: str) -> Iterator[None]:
    """Multiply as a precision of `libtrain.settings.PRECISIONS` says, forward and backward; as before afterwards."""
    with full_precision():
        if precision == "tf32":
            backends: Any = torch.backends
            for backend in (backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn):
                backend.fp32_precision = "tf32"
        yield


def logits_of(model: Callable[[Tensor], Tensor], images: Tensor, precision: str) -> Tensor:
    """Call a network in a precision; its logits come out in float32 or what finer type the network has."""
    with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bf16"):
        logits = model(images)
    return logits.float() if precision == "bf16" else logits
