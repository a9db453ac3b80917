"""Input-loss curvature of single examples, by random probes of the Hessian.

Ravikumar, Soufleri, Hashemi, Roy, "Unveiling Privacy, Memorization, and Input Curvature Links", ICML 2024,
arXiv 2402.18726; the estimator is that of Garg, Ravikumar, Roy, "Memorization Through the Lens of Curvature
of Loss Function Around Samples", ICML 2024, arXiv 2307.05831.

With l(x) the cross-entropy of f(x)/temp for one example, g its gradient and H its Hessian with respect to the
input, and v_1 ... v_n uniform on {-1, +1}^d:

    curvature(x) = 1/n sum_k ||g(x + h v_k) - g(x)||_2 / h          estimates E||Hv||_2
    trace(x)     = 1/n sum_k v_k . (g(x + h v_k) - g(x)) / h        Hutchinson's estimate of tr H

With m = logsumexp_{j != y} z_j - z_y the margin of the logits z, l is computed as softplus(m), the same number:
softmax - 1 would lose 1 - p of an example that is classified with confidence, and with it its gradient.

Scale: l is the loss of one example (never a batch mean); h is in the units of the images as the model gets
them; both scores are per squared unit of those. Neither depends on the batch size, the order of the batches or
how a run was split, up to float32 rounding: a probe belongs to (seed, example, k).

Edge cases: a loss that is linear in x gives 0; h -> 0 loses precision as 1e-7 ||g|| / h in float32; with kinks
(ReLU, max pooling) the finite difference is heavy-tailed in h and the exact Hessian ignores the kinks. A model that
is random in evaluation mode, mixes the examples of a batch or computes in half precision would give wrong numbers
without a sign of it: `check_model` refuses it.
"""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from libscores.logit_scores import losses
from libscores.one_channel import fast_gradients_by_gray_images

_PRECISE = (torch.float32, torch.float64)
_SIGNS = (2 * np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).astype(np.int8) - 1).view(np.int64)[:, 0]
"""The eight signs of a byte's bits, the highest first, in one number."""
CHECKED = 32
"""Examples that `check_model` looks at."""
_MIXES = "the model mixes the examples of a batch in evaluation mode: logits depend on the others"
# Two evaluations of one batch differ by the order of sums at the most (atomic additions on a GPU), in units of the
# rounding error; an example beside others also by the algorithm that a library chooses for the shape.
_REPEATED, _BESIDE_OTHERS = 64, 1e-3


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
    key = np.array([seed, 0], dtype=np.uint64)
    philox = np.random.Philox(key=key)
    start = philox.state  # setting it is several times faster than a generator for every example
    start["state"]["key"] = key
    for row, example in zip(bits, examples, strict=True):
        key[1] = int(example)
        philox.state = start
        words = philox.random_raw(math.ceil(row.size / 8))
        row[...] = words.astype("<u8").view(np.uint8)[: row.size].reshape(row.shape)
    signs = _SIGNS[bits].view(np.int8)[..., : math.prod(shape)]
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
    input_module: str | None = None,
    progress: Callable[[int], object] | None = None,
    checked: bool = False,
) -> CurvatureScores:
    """Estimate the curvature and the trace of the Hessian for every example (equations in the module's text).

    The gradient at x is computed once. The model is put in evaluation mode, moved to `device` in channels-last
    layout, and its parameters ask for no gradient while it is scored; modes and flags are restored afterwards.

    Args:
        model: Maps images to at least two logits, each example independently of the others.
        images: Inputs, float, shape (N, C, H, W) (or (N, d) for a model of vectors), or whatever the model takes if
            `input_module` is given.
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
        input_module: Submodule at whose output, in place of the images, the example is perturbed (`at_module`).
        progress: Called with the number of examples done after each batch.
        checked: `check_model` has seen this model and such images before; it is called otherwise.

    Returns:
        The scores in the order of `images`.

    Raises:
        ValueError: An argument is out of range, the model is refused by `check_model`, or a score is not finite (the
            message names the example).
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

    if not checked and len(images):
        check_model(model, images, labels, temp=temp, input_module=input_module, device=device)
    scores = np.empty((2, len(images)), dtype=np.float32)
    with scoring(model, device), fast_gradients_by_gray_images(model):
        for start in range(0, len(images), batch_size):
            rows = slice(start, min(start + batch_size, len(images)))
            x, y = on_device(model, images[rows], labels[rows], device)
            network, x = at_module(model, input_module, x)
            probes = torch.from_numpy(rademacher(seed, examples[rows], n_probes, tuple(x.shape[1:])))
            probes = probes.to(device)
            products = _exact_products if exact else _difference_products
            norm, inner = torch.zeros(len(y), device=device), torch.zeros(len(y), device=device)
            for v, hv in products(network, x, y, probes, h, temp):
                norm += hv.flatten(1).norm(dim=1)
                inner += (v * hv).flatten(1).sum(dim=1)
            scores[:, rows] = torch.stack([norm, inner]).div_(n_probes).cpu().numpy()
            if progress:
                progress(len(y))
    bad = np.flatnonzero(~np.isfinite(scores).all(0))
    if bad.size:
        raise ValueError(f"the curvature of example {examples[bad[0]]} is not finite ({bad.size} such examples)")
    return CurvatureScores(curvature=scores[0], trace=scores[1])


def check_model(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    temp: float = 1.0,
    input_module: str | None = None,
    device: torch.device | str = "cpu",
    batch_size: int = CHECKED,
) -> None:
    """Refuse a model whose loss is not a deterministic float32 function of each example alone.

    The first `CHECKED` examples, or a batch if that is less, are evaluated twice, and half of them once more beside
    other companions. What decides: the types of parameters, buffers and of all that is computed on the way (also under
    autocast); equal logits and gradients, to rounding, and no random numbers drawn; the same logits beside other
    companions, and no gradient of one example's loss with respect to another example.

    Args:
        model: As for `curvature`.
        images: Inputs, shape (N, ...), N at least 1.
        labels: Classes, shape (N,).
        temp: Temperature that divides the logits.
        input_module: As for `curvature`.
        device: Where to compute.
        batch_size: Examples that the device's memory holds at a time.

    Raises:
        ValueError: It is not such a function, its output is not one row of at least two logits for an example, or a
            label is no class of it; the message says which.
    """
    if input_module is None and images.dtype not in _PRECISE:
        raise ValueError(f"the images are {images.dtype}; curvature needs float32 or float64")
    if labels.ndim != 1 or labels.is_floating_point() or labels.is_complex():
        raise ValueError(f"labels should be whole numbers of shape (N,), found {labels.dtype} {tuple(labels.shape)}")
    for name, value in chain(model.named_parameters(), model.named_buffers()):
        if _is_coarse(value):
            raise ValueError(f"{name!r} of the model is {value.dtype}; curvature needs float32 or float64 throughout")

    def evaluate(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits of x and the gradient of the loss of the first len(y) examples."""
        x = x.detach().requires_grad_()
        try:
            logits = network(x.clone())
            _check_logits(logits, len(x), labels)
            return logits.detach(), torch.autograd.grad(losses(logits[: len(y)], y, temp).sum(), x)[0]
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"the model's loss has no gradient with respect to the images: {reason}") from error

    _settle_layout(model, images, labels, device)
    with scoring(model, device):
        checked = min(CHECKED, batch_size)
        x, y = on_device(model, images[:checked], labels[:checked], device)
        network, x = at_module(model, input_module, x)
        before = _random_states(x)
        with _Operations() as seen:
            logits, gradient = evaluate(x, y)
        if seen.coarse:
            raise ValueError(f"the model computes in {seen.coarse}; curvature needs float32 or float64 throughout")
        again = evaluate(x, y)
        drawn = not all(map(torch.equal, before, _random_states(x)))
        size = _REPEATED * torch.finfo(logits.dtype).eps
        if drawn or any(_differ(a, b, size) for a, b in zip((logits, gradient), again, strict=True)):
            cause = f" ({', '.join(seen.random)})" if seen.random else ""
            raise ValueError(f"the model is random in evaluation mode{cause}: two evaluations of an example differ")
        with fast_gradients_by_gray_images(model) as other_way:
            if other_way and _differ(gradient, evaluate(x, y)[1], _BESIDE_OTHERS):
                raise ValueError("gradients by images of one channel are not those that PyTorch computes")
        half = max(1, len(x) // 2)
        beside, other = evaluate(torch.cat([x[:half], 2 * x[:half].flip(0)]), y[:half])
        leak = other[half:]
        if _differ(logits[:half], beside[:half], _BESIDE_OTHERS) or (leak[leak.isfinite()] != 0).any():
            raise ValueError(_MIXES)


def check_alone(
    model: nn.Module, images: Tensor, labels: Tensor, *, device: torch.device | str = "cpu", batch_size: int = CHECKED
) -> Tensor:
    """Refuse a model whose logits of an example are random or depend on its companions; no gradient is taken.

    Args:
        model: The model.
        images: Inputs of any type, shape (N, ...), N at least 1; a batch of at most `CHECKED` is looked at.
        labels: Classes, shape (N,).
        device: Where to compute.
        batch_size: Examples that the device's memory holds at a time.

    Returns:
        The output for that batch.

    Raises:
        ValueError: It is such a model, or its output is no tensor of a row an example; the message says which.
    """
    _settle_layout(model, images, labels, device)
    with scoring(model, device), torch.no_grad():
        checked = min(CHECKED, batch_size)
        x, _ = on_device(model, images[:checked], labels[:checked], device)
        half = max(1, len(x) // 2)
        first, again, beside_fewer = (model(part.clone()) for part in (x, x, x[:half]))
        if not isinstance(first, Tensor) or len(first) != len(x):
            raise ValueError(f"the model returns a {type(first).__name__}, not a row of logits for each example")
        if _differ(first, again, _REPEATED * torch.finfo(first.dtype).eps):
            raise ValueError("the model is random in evaluation mode: two evaluations of an example differ")
        if _differ(first[:half], beside_fewer, _BESIDE_OTHERS):
            raise ValueError(_MIXES)
        return first


def _check_logits(logits: Any, n: int, labels: Tensor) -> None:
    """Refuse an output that is not one row of at least two float32 logits for each of n examples, or has too few."""
    if not isinstance(logits, Tensor):
        raise ValueError(f"the model returns a {type(logits).__name__}; curvature needs a tensor of logits")
    if logits.dtype not in _PRECISE:
        raise ValueError(f"the model's logits are {logits.dtype}; curvature needs float32 or float64")
    if logits.ndim != 2 or len(logits) != n or logits.shape[1] < 2:
        raise ValueError(f"the model returns shape {tuple(logits.shape)} for {n} examples, not ({n}, at least 2)")
    outside = ((labels < 0) | (labels >= logits.shape[1])).nonzero()
    if len(outside):
        row = int(outside[0])
        raise ValueError(f"label {labels[row]} of image {row} is none of the model's {logits.shape[1]} classes")


class _FromModule(nn.Module):
    """A model as a function of the output of one of its submodules, for inputs that are given once."""

    def __init__(self, model: nn.Module, module: nn.Module, inputs: Tensor) -> None:
        super().__init__()
        self.model, self.module, self.inputs = model, module, inputs

    def forward(self, values: Tensor) -> Any:
        """Return the model's output where the submodule returns `values`, (B, ...) for the first B inputs."""
        handle = self.module.register_forward_hook(lambda module, arguments, output: values)
        try:
            return self.model(self.inputs[: len(values)].clone())
        finally:
            handle.remove()


def at_module(model: nn.Module, name: str | None, inputs: Tensor) -> tuple[nn.Module, Tensor]:
    """Return a model and its input, or the rest of it after a submodule and that submodule's output.

    Args:
        model: The model, in evaluation mode.
        name: Name of the submodule as `model.named_modules()` has it, None for the model itself.
        inputs: Inputs of the model, (B, ...).

    Returns:
        A module, and what it takes, (B, ...).

    Raises:
        ValueError: There is no such submodule, it is not called once, or it does not return real numbers for every
            example.
    """
    if name is None:
        return model, inputs
    modules = dict(model.named_modules())
    if name not in modules or not name:
        raise ValueError(f"input_module {name}: the model has no such part; it has: {', '.join(filter(None, modules))}")
    outputs: list[Any] = []
    handle = modules[name].register_forward_hook(lambda module, arguments, output: outputs.append(output))
    try:
        with torch.no_grad():
            model(inputs.clone())
    finally:
        handle.remove()
    if len(outputs) != 1:
        raise ValueError(f"input_module {name}: called {len(outputs)} times for a batch, not once")
    (values,) = outputs
    if not isinstance(values, Tensor) or values.dtype not in _PRECISE or len(values) != len(inputs):
        found = (
            f"{values.dtype} of shape {tuple(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
        )
        raise ValueError(f"input_module {name}: returns {found}, not real numbers for each of {len(inputs)} examples")
    return _FromModule(model, modules[name], inputs), values.detach()


def _is_coarse(value: Tensor) -> bool:
    """Tell whether a tensor holds real numbers of fewer than 32 bits."""
    narrow = value.is_floating_point() and value.dtype.itemsize < 4
    return narrow or value.is_quantized or value.dtype is torch.complex32


def _differ(a: Tensor, b: Tensor, size: float) -> bool:
    """Tell whether two tensors differ by more than a share of the largest finite value; what is not finite is equal."""
    finite = a.isfinite() & b.isfinite()
    a, b = a[finite], b[finite]
    return bool(a.numel()) and bool((a - b).abs().max() > size * a.abs().max())


def _random_states(x: Tensor) -> list[Tensor]:
    """Return the states of the generators that a model on the device of x draws from by default."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(x.device)] if x.is_cuda else [])]


class _Operations(TorchDispatchMode):
    """Note what is computed in half precision, and which operations may draw random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.coarse = ""
        self.random: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if torch.Tag.nondeterministic_seeded in func.tags:
            self.random.add(str(func))
        for value in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(value, Tensor) and _is_coarse(value):
                self.coarse = self.coarse or f"{value.dtype} ({func})"
        return result


def _bare_until_loaded(wrapped: Any) -> Any:
    """Call what a method was before PyTorch wrapped it for torch._dynamo, unless a network has loaded that compiler.

    The wrapper would import it, which takes as long as all the rest of PyTorch.
    """
    bare = inspect.unwrap(wrapped)

    def method(*args: Any, **kwargs: Any) -> Any:
        return (wrapped if "torch._dynamo" in sys.modules else bare)(*args, **kwargs)

    return method


setattr(_Operations, "__torch_dispatch__", _bare_until_loaded(_Operations.__torch_dispatch__))  # noqa: B010


_layouts: WeakKeyDictionary[nn.Module, torch.memory_format] = WeakKeyDictionary()
"""Of models that were tried on images, the layout that they are scored in."""


def _settle_layout(model: nn.Module, images: Tensor, labels: Tensor, device: torch.device | str) -> None:
    """See, once, whether a model takes views that images or a layer's output do not have in channels-last layout."""
    layout = _layout(model)
    if model in _layouts or images.ndim != 4:
        return
    if layout is torch.channels_last:
        with scoring(model, device), torch.no_grad():
            try:
                model(on_device(model, images[:2], labels[:2], device)[0].clone())
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                if "view" in str(error):
                    layout = torch.contiguous_format
    _layouts[model] = layout


def has_volumes(model: nn.Module) -> bool:
    """Tell whether a model has weights of five dimensions, for which there is no channels-last layout of images."""
    return any(tensor.dim() == 5 for tensor in chain(model.parameters(), model.buffers()))


def _layout(model: nn.Module) -> torch.memory_format:
    """Return the layout of images that a model is scored in: channels last is faster, where that can be."""
    if model in _layouts:
        return _layouts[model]
    return torch.contiguous_format if has_volumes(model) else torch.channels_last


def on_device(model: nn.Module, images: Tensor, labels: Tensor, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """Move images, in the layout that the model is scored in, and labels to the device."""
    layout = _layout(model) if images.ndim == 4 else torch.contiguous_format
    # A clone: images of one channel are in either layout already, and their strides decide the next layer's.
    return images.to(device).clone(memory_format=layout), labels.to(device).long()


def _difference_products(
    model: nn.Module, x: Tensor, y: Tensor, probes: Tensor, h: float, temp: float
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield v_k, in memory that is used again for the next, and (g(x + h v_k) - g(x)) / h."""
    gradient = input_gradient(model, x, y, temp)
    v, moved = torch.empty(x.shape, dtype=x.dtype, device=x.device), torch.empty_like(x)
    for k in range(probes.shape[1]):
        v.copy_(probes[:, k])
        shifted = input_gradient(model, torch.add(x, v, alpha=h, out=moved), y, temp)
        yield v, shifted.sub_(gradient).div_(h)


def _exact_products(
    model: nn.Module, x: Tensor, y: Tensor, probes: Tensor, h: float, temp: float
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield v_k and H v_k."""
    x = x.detach().requires_grad_()
    loss = losses(model(x.clone()), y, temp).sum()
    (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
    for k in range(probes.shape[1]):
        v = probes[:, k].to(x.dtype)
        (hv,) = torch.autograd.grad(gradient, x, grad_outputs=v, retain_graph=True)
        yield v, hv


def input_gradient(model: nn.Module, x: Tensor, y: Tensor, temp: float) -> Tensor:
    """Return the gradient of every example's own loss: examples are independent, so the sum's gradient is it."""
    x = x.detach().requires_grad_()
    loss = losses(model(x.clone()), y, temp).sum()
    return torch.autograd.grad(loss, x)[0]


_backends: Any = torch.backends
_MULTIPLIERS = (
    _backends.cuda.matmul, _backends.cudnn.conv, _backends.cudnn.rnn,
    _backends.mkldnn.matmul, _backends.mkldnn.conv, _backends.mkldnn.rnn,
)  # fmt: skip


@contextmanager
def full_precision() -> Iterator[None]:
    """Multiply in float32: no TF32 or bfloat16 inside products."""
    precision = [backend.fp32_precision for backend in _MULTIPLIERS]
    try:
        for backend in _MULTIPLIERS:
            backend.fp32_precision = "ieee"
        yield
    finally:
        for backend, before in zip(_MULTIPLIERS, precision, strict=True):
            backend.fp32_precision = before


@contextmanager
def scoring(model: nn.Module, device: torch.device | str) -> Iterator[None]:
    """Put a model in evaluation mode on the device, parameters frozen; restore modes and flags at the end.

    A caller's autocast does not reach it, nor do TF32 and bfloat16 inside products: their 8 to 11 bits drown a
    difference.
    """
    modes = [(module, module.training) for module in model.modules()]
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    model.to(device).to(memory_format=_layout(model)).eval()
    try:
        for parameter, _ in flags:
            parameter.requires_grad_(False)
        with full_precision(), torch.autocast(torch.device(device).type, enabled=False):
            yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter, requires_grad in flags:
            parameter.requires_grad_(requires_grad)
