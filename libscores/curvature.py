"""Input-loss curvature of single examples, by random probes of the Hessian.

Ravikumar, Soufleri, Hashemi, Roy, "Unveiling Privacy, Memorization, and Input Curvature Links", ICML 2024,
arXiv 2402.18726; the estimator is that of Garg, Ravikumar, Roy, "Memorization Through the Lens of Curvature
of Loss Function Around Samples", ICML 2024, arXiv 2307.05831.

With l(x) the cross-entropy of f(x)/temp for one example, g its gradient and H its Hessian with respect to the
input, and v_1 ... v_n uniform on {-1, +1}^d:

    curvature(x) = 1/n sum_k ||g(x + h v_k) - g(x)||_2 / h          estimates E||Hv||_2
    trace(x)     = 1/n sum_k v_k . (g(x + h v_k) - g(x)) / h        Hutchinson's estimate of tr H

Scale: l is the loss of one example (never a batch mean); h is in the units of the images as the model gets
them; both scores are per squared unit of those. Neither depends on the batch size, the order of the batches or
how a run was split, up to float32 rounding: a probe belongs to (seed, example, k).

Edge cases: a loss that is linear in x gives 0; h -> 0 loses precision as 1e-7 ||g|| / h in float32; with kinks
(ReLU, max pooling) the finite difference is heavy-tailed in h and the exact Hessian ignores the kinks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

FORMAT = 1
"""To be raised when what a score means changes; results of two formats are never mixed."""


@dataclass(frozen=True)
class CurvatureScores:
    """Scores of N examples: `curvature` and `trace`, float32, shape (N,)."""

    curvature: np.ndarray
    trace: np.ndarray


def rademacher(seed: int, examples: np.ndarray, n_probes: int, shape: tuple[int, ...]) -> np.ndarray:
    """Draw the probes of some examples.

    Each example has a Philox stream of its own, keyed by (seed, example), so a probe depends on nothing else,
    and the first k probes are the same whatever `n_probes` is.

    Args:
        seed: At least 0.
        examples: Identities of the examples, at least 0, shape (B,).
        n_probes: Number of probes of each example.
        shape: Shape of one input.

    Returns:
        Independent signs -1 and +1, int8, shape (B, n_probes, *shape).
    """
    n_bytes = math.ceil(math.prod(shape) / 8)
    bits = np.empty((len(examples), n_probes, n_bytes), dtype=np.uint8)
    for row, example in zip(bits, examples, strict=True):
        words = np.random.Philox(key=[seed, int(example)]).random_raw(math.ceil(row.size / 8))
        row[...] = words.astype("<u8").view(np.uint8)[: row.size].reshape(row.shape)
    signs = np.unpackbits(bits, axis=-1, count=math.prod(shape)).view(np.int8)
    signs <<= 1
    signs -= 1
    return signs.reshape(len(examples), n_probes, *shape)


def curvature(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    examples: np.ndarray,
    *,
    h: float = 1e-3,
    n_probes: int = 10,
    temp: float = 1.0,
    seed: int = 0,
    batch_size: int = 256,
    device: torch.device | str = "cpu",
    exact: bool = False,
    progress: Callable[[int], object] | None = None,
) -> CurvatureScores:
    """Estimate the curvature and the trace of the Hessian for every example (equations in the module's text).

    The gradient at x is computed once. The model is put in evaluation mode, moved to `device` in channels-last
    layout, and its parameters ask for no gradient while it is scored; modes and flags are restored afterwards.

    Args:
        model: Maps images to logits, each example independently of the others.
        images: Inputs, float, shape (N, C, H, W) (or (N, d) for a model of vectors).
        labels: Classes, int64, shape (N,).
        examples: Identities that seed the probes, shape (N,): the positions in the data set.
        h: Step of the finite difference, in units of the images, > 0.
        n_probes: Number n of probes, at least 1.
        temp: Temperature that divides the logits, > 0.
        seed: Seed of the probes, at least 0.
        batch_size: Examples per forward pass; bounds memory, not the result.
        device: Where to compute.
        exact: Use exact Hessian-vector products (two backward passes) instead of finite differences; slower,
            needs a twice differentiable model; h is ignored.
        progress: Called with the number of examples done after each batch.

    Returns:
        The scores in the order of `images`.

    Raises:
        ValueError: An argument is out of range, or a score is not finite (the message names the example).
    """
    if not h > 0 or not math.isfinite(h):
        raise ValueError(f"h must be a positive number, found {h}")
    if n_probes < 1:
        raise ValueError(f"n_probes must be at least 1, found {n_probes}")
    if not temp > 0 or not math.isfinite(temp):
        raise ValueError(f"temp must be a positive number, found {temp}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, found {batch_size}")
    if not len(images) == len(labels) == len(examples):
        raise ValueError(f"{len(images)} images, {len(labels)} labels and {len(examples)} examples do not match")

    scores = np.empty((2, len(images)), dtype=np.float32)
    with _scoring(model, device) as layout:
        for start in range(0, len(images), batch_size):
            rows = slice(start, min(start + batch_size, len(images)))
            x = (
                images[rows]
                .to(device)
                .contiguous(memory_format=layout if images.ndim == 4 else torch.contiguous_format)
            )
            y = labels[rows].to(device)
            probes = torch.from_numpy(rademacher(seed, examples[rows], n_probes, tuple(images.shape[1:])))
            probes = probes.to(device)
            products = _exact_products if exact else _difference_products
            norm, inner = torch.zeros(len(y), device=device), torch.zeros(len(y), device=device)
            for v, hv in products(model, x, y, probes, h, temp):
                norm += hv.flatten(1).norm(dim=1)
                inner += (v * hv).flatten(1).sum(dim=1)
            scores[:, rows] = torch.stack([norm, inner]).div_(n_probes).cpu().numpy()
            if progress:
                progress(len(y))
    bad = np.flatnonzero(~np.isfinite(scores).all(0))
    if bad.size:
        raise ValueError(f"the curvature of example {examples[bad[0]]} is not finite ({bad.size} such examples)")
    return CurvatureScores(curvature=scores[0], trace=scores[1])


def _difference_products(
    model: nn.Module, x: Tensor, y: Tensor, probes: Tensor, h: float, temp: float
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield v_k and (g(x + h v_k) - g(x)) / h."""
    gradient = _input_gradient(model, x, y, temp)
    for k in range(probes.shape[1]):
        v = probes[:, k].to(x.dtype)
        shifted = _input_gradient(model, torch.add(x, v, alpha=h), y, temp)
        yield v, shifted.sub_(gradient).div_(h)


def _exact_products(
    model: nn.Module, x: Tensor, y: Tensor, probes: Tensor, h: float, temp: float
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield v_k and H v_k."""
    x = x.detach().requires_grad_()
    loss = F.cross_entropy(model(x) / temp, y, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
    for k in range(probes.shape[1]):
        v = probes[:, k].to(x.dtype)
        (hv,) = torch.autograd.grad(gradient, x, grad_outputs=v, retain_graph=True)
        yield v, hv


def _input_gradient(model: nn.Module, x: Tensor, y: Tensor, temp: float) -> Tensor:
    """Return the gradient of every example's own loss: examples are independent, so the sum's gradient is it."""
    x = x.detach().requires_grad_()
    loss = F.cross_entropy(model(x) / temp, y, reduction="sum")
    return torch.autograd.grad(loss, x)[0]


@contextmanager
def _scoring(model: nn.Module, device: torch.device | str) -> Iterator[torch.memory_format]:
    """Put a model in evaluation mode on the device, parameters frozen; restore modes and flags at the end."""
    modes = [(module, module.training) for module in model.modules()]
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    precise = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False  # its 10 bits drown a difference
    layout = torch.channels_last
    model.to(device).to(memory_format=layout).eval().requires_grad_(False)
    try:
        yield layout
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = precise
        for module, training in modes:
            module.training = training
        for parameter, requires_grad in flags:
            parameter.requires_grad_(requires_grad)
