"""What a network must be for its per-example gradients to mean anything, tried out on a few examples.

A private training bounds what one example can do. That holds only where an example's gradient depends on no other
example, where nothing but the noisy update carries anything from one step to the next, and where the gradients are
those of the loss. `FirstBatch` compares each with plain autograd and names the layer that fails.
"""

from __future__ import annotations

import libcli as cli

import pickle
import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.parameter import is_lazy

from libscores.curvature import check_alone, check_model, full_precision
from libscores.logit_scores import are_probabilities
from libstore.errors import InputError
from libtrain.streams import evaluating, generators, seeded

N_EXAMPLES = 16
"""Examples that a check looks at."""
_FEW = 8
"""Examples that `check_results` looks at: with 32, it would take a ResNet-18 two seconds on one CPU thread."""

# Norms of some examples' gradients (b,), a function from factors (b,) to the weighted sums of their gradients,
# their losses (b,) and their logits (b, K).
Chunk = tuple[Tensor, Callable[[Tensor], dict[Tensor, Tensor]], Tensor, Tensor]
Way = Callable[[Tensor, Tensor], Iterator[Chunk]]

PROBABILITIES = (
    "the network gives probabilities (rows that are not negative and sum to 1), where logits are expected: the softmax "
    "is taken again, so that no loss comes near 0; leave the network's own softmax out"
)
"""What is said of a network that ends in a softmax."""

FAILURES = (RuntimeError, TypeError, ValueError, AttributeError, LookupError, ArithmeticError, AssertionError)
"""What a network's or a layer's code may raise; a request to stop is none of them."""


class CallError(InputError):
    """A network cannot be called with its inputs."""


def describe_layer(model: nn.Module, name: str) -> str:
    """Return how a message calls a layer, for example "layer features.0 (Conv2d)"."""
    kind = type(model.get_submodule(name)).__name__
    return f"layer {name} ({kind})" if name else f"the network ({kind})"


def batch_statistics(model: nn.Module) -> str | None:
    """Name the first layer that normalises with, or keeps, statistics of a batch in its present mode; else None."""
    for name, layer in model.named_modules():
        if isinstance(layer, _BatchNorm) and (layer.training or layer.running_mean is None):
            remedy = "take GroupNorm" if layer.running_mean is None else "take GroupNorm, or build it in .eval() mode"
            return f"{describe_layer(model, name)} is a BatchNorm that mixes the examples of a batch: {remedy}"
        if isinstance(layer, _InstanceNorm) and layer.training and layer.track_running_stats:
            remedy = "take track_running_stats=False, or build it in .eval() mode"
            return f"{describe_layer(model, name)} keeps statistics of the batch without noise: {remedy}"
    return None


def first_logits(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Call a network in its present mode.

    Raises:
        InputError: It cannot be called with such inputs or gives no logits, one row an example.
    """
    where = type(model).__name__
    try:
        logits = model(images)
    except FAILURES as error:
        raise_for_cli(error)
        raise CallError(f"{where}: cannot be called with an input {_form(images)}: {first_line(error)}") from error
    n, classes = len(images), int(labels.max()) + 1
    if not isinstance(logits, Tensor):
        raise InputError(f"{where}: gives a {type(logits).__name__}, not a tensor of logits of shape ({n}, classes)")
    if logits.dim() != 2 or len(logits) != n or not logits.is_floating_point():
        raise InputError(f"{where}: gives an output {_form(logits)}, not logits of shape ({n}, classes)")
    if logits.shape[1] < classes:
        raise InputError(f"{where}: gives {logits.shape[1]} logits, but there is a label {classes - 1}")
    return logits


def _form(tensor: Tensor) -> str:
    return f"of shape {tuple(tensor.shape)} and type {str(tensor.dtype).removeprefix('torch.')}"


def check_trainable(model: nn.Module, images: Tensor, labels: Tensor) -> bool:
    """Try a network on a few examples, as it will be trained; neither it nor any random stream is changed.

    Returns:
        Whether it draws random numbers.

    Raises:
        InputError: It has nothing to train, is lazy, or is not a function from inputs to logits.
    """
    check_parameters(model)
    with _as_found(model), torch.no_grad():
        _, draws = _draw(model, images[:N_EXAMPLES], labels[:N_EXAMPLES])
    return draws


def check_results(model: nn.Module, images: Tensor, labels: Tensor) -> None:
    """Refuse a network that gives an example no result of its own in evaluation mode; no random stream is changed.

    Memorization, like every other score, is of such results, so hours of training would be for nothing. A network that
    has them but that scores cannot differentiate keeps its memorization: that is a line on stderr.

    Args:
        model: A network of this kind, built for this call: its layout is changed, and its weights, since behind a layer
            that starts at zero all results are alike.
        images: Inputs, shape (N, ...), on the device of the network; a few are looked at.
        labels: Their classes.

    Raises:
        InputError: It mixes the examples of a batch, is random, or cannot be called with these inputs as they lie.
    """
    where, images, labels = type(model).__name__, images[:_FEW], labels[:_FEW]
    with seeded(0, images.device):
        with torch.no_grad(), evaluating(model):
            first_logits(model, images, labels)
        _move(parameter for parameter in model.parameters() if parameter.requires_grad)
        try:
            check_alone(model, images, labels, device=images.device)
        except FAILURES as error:
            raise_for_cli(error)
            if isinstance(error, ValueError):
                raise InputError(f"{where}: {error}, so an example has no result of its own to score") from error
            cli.warn_once(f"{where}: can be trained but not scored: {first_line(error)}")
            return
        try:
            if images.is_floating_point():  # of token ids, only scoring knows where they become differentiable
                check_model(model, images, labels, device=images.device)
        except FAILURES as error:
            raise_for_cli(error)
            cli.warn_once(f"{where}: can be trained, but curvature cannot be taken of it: {error}")


def _draw(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, bool]:
    """Return the logits, and whether any random number was drawn for them."""
    with seeded(0, images.device):
        before = _generator_state(images.device)
        logits = first_logits(model, images, labels)
        if are_probabilities(logits):
            cli.warn_once(PROBABILITIES)
        return logits, before != _generator_state(images.device)


def check_parameters(model: nn.Module) -> None:
    """Refuse parameters that cannot be trained: raises InputError if one has no size yet, or if all are frozen."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(tensor):
            raise InputError(f"{describe_layer(model, name.rpartition('.')[0])} is lazy: give the sizes of its inputs")
    if not any(p.requires_grad for p in model.parameters()):
        raise InputError(f"{type(model).__name__}: no parameter asks for a gradient, so there is nothing to train")


def raise_for_cli(error: BaseException) -> None:
    """Raise again what has a message of its own for users: no memory, or no deterministic algorithm."""
    if isinstance(error, torch.OutOfMemoryError | InputError) or "deterministic implementation" in str(error):
        raise error


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's message, with its type."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"


class FirstBatch:
    """A few examples, and what autograd says of them.

    It looks slightly beside the present weights, where no weight is zero by design: behind a layer that starts at
    zero every gradient is zero, also a wrong one. Weights, buffers and random streams come back as they were.

    Args:
        model: The network, in the mode in which gradients will be taken.
        images: Inputs, (B, ...); some are enough.
        labels: Classes, int64, (B,).

    Raises:
        InputError: Examples mix, something is kept between calls, or the network cannot be called.
    """

    def __init__(self, model: nn.Module, images: Tensor, labels: Tensor) -> None:
        self.model, self.images, self.labels = model, images[:N_EXAMPLES], labels[:N_EXAMPLES]
        if len(images) == 1:  # companions of its own kind, so that mixing shows
            self.images, self.labels = torch.cat([images, _turned(images), images]), labels.repeat(3)
        self._trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._where = type(model).__name__
        self._relative = max(1e-3, *(16 * torch.finfo(p.dtype).eps for p in self._trainable.values()))
        if problem := batch_statistics(model):
            raise InputError(problem)
        n = len(self.images)
        self._weights = torch.linspace(0.5, 1.5, n, device=images.device)
        self._positions = sorted({0, n - 1})
        with self._at_other_weights():
            before = {name: tensor.detach().clone() for name, tensor in _state(model)}
            logits, self.draws = _draw(model, self.images, self.labels)
            losses = F.cross_entropy(logits, self.labels, reduction="none")
            self._check_state(before)
            self._sum = self._gradient(self._weights.to(losses.dtype) @ losses)
            self._scale = _norm(self._sum) / n
            self._beside = [self._gradient(losses[i]) for i in self._positions]
            if not all(torch.isfinite(g).all() for g in self._sum):
                raise InputError(f"{self._where}: the loss or its gradient is not finite on the first examples")
            self._check_memory()
            for i, beside in zip(self._positions, self._beside, strict=True):
                self._check_companions(i, beside, self._companions(i))
            self._alone = [self._gradient(self._losses(*self._one(i))[0]) for i in self._positions]
            if not self.draws:
                for i, beside in zip(self._positions, self._beside, strict=True):
                    self._check_companions(i, beside, self.images[i : i + 1])
            self._check_state(before)

    def difference(self, way: Way, *, replays: bool, relative: float = 0.0) -> str | None:
        """Compare a way to per-example gradients with autograd; return what it gets wrong, or None.

        Args:
            way: Gives the gradients of a batch, chunk by chunk.
            replays: It calls the network with the batch as it is, so that it draws the same random numbers.
            relative: Share of its norm that a gradient may be off, if that is more than for float32.
        """
        relative = max(relative, self._relative)
        with self._at_other_weights():
            try:
                if replays or not self.draws:
                    norms, got = self._run(way, self.images, self.labels, self._weights)
                    if wrong := self._compare(got, self._sum, relative):
                        return wrong
                    for i, want in zip(self._positions, self._beside, strict=True):
                        if not (norms[i] - _norm(want)).abs() <= relative * (_norm(want) + 0.01 * self._scale):
                            return f"{self._where}: an example's norm is {norms[i]:.6g}, not {_norm(want):.6g}"
                for i, want in zip(self._positions, self._alone, strict=True):
                    _, got = self._run(way, *self._one(i), self._weights.new_ones(1))
                    if wrong := self._compare(got, want, relative):
                        return wrong
            except FAILURES as error:
                raise_for_cli(error)
                return first_line(error)
        return None

    def _run(self, way: Way, images: Tensor, labels: Tensor, weights: Tensor) -> tuple[Tensor, list[Tensor]]:
        norms: list[Tensor] = []
        total = [torch.zeros_like(p) for p in self._trainable.values()]
        with seeded(0, images.device):
            for chunk, weighted_sums, _, _ in way(images, labels):
                factors = weights[sum(len(part) for part in norms) :][: len(chunk)].to(chunk.dtype)
                with torch.no_grad():
                    sums = weighted_sums(factors)
                total = [t + sums[p] if p in sums else t for t, p in zip(total, self._trainable.values(), strict=True)]
                norms.append(chunk)
        return torch.cat(norms), total

    def _one(self, i: int) -> tuple[Tensor, Tensor]:
        return self.images[i : i + 1], self.labels[i : i + 1]

    def _losses(self, images: Tensor, labels: Tensor) -> Tensor:
        with seeded(0, images.device):
            return F.cross_entropy(first_logits(self.model, images, labels), labels, reduction="none")

    def _gradient(self, loss: Tensor) -> list[Tensor]:
        parameters = list(self._trainable.values())
        try:
            found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        except FAILURES as error:
            raise_for_cli(error)
            raise InputError(f"{self._where}: has no gradient: {first_line(error)}") from error
        return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]

    def _compare(self, got: list[Tensor], want: list[Tensor], relative: float = 0.0) -> str | None:
        """Name the parameter whose gradient differs most from autograd's by more than rounding, or None."""
        total, worst, message = _norm(want), 1.0, None
        for (name, parameter), mine, theirs in zip(self._trainable.items(), got, want, strict=True):
            scale = theirs.norm() + 0.01 * (total + self._scale)
            allowed = max(relative, self._relative) * scale + torch.finfo(parameter.dtype).tiny
            excess = float((mine - theirs).norm() / allowed)
            if not excess <= worst:
                off = float((mine - theirs).norm() / theirs.norm())
                layer = describe_layer(self.model, name.rpartition(".")[0])
                worst, message = excess, f"the gradient of {name} in {layer} is off by {off:.2g} of its norm"
        return message

    def _companions(self, i: int) -> Tensor:
        """Return the batch with every example but one exchanged, for the values of others in another order."""
        other = (i + 1) % len(self.images)
        return torch.where(_is(i, self.images), self.images, _turned(self.images[other : other + 1]))

    def _check_companions(self, i: int, beside: list[Tensor], batch: Tensor) -> None:
        """Compare an example's gradient with that in another batch, or alone."""
        row = i if len(batch) > 1 else 0
        losses = self._losses(batch, self.labels if len(batch) > 1 else self.labels[i : i + 1])
        if wrong := self._compare(self._gradient(losses[row]), beside):
            guilty = self._first_difference(self.images, batch, row=i)
            raise InputError(
                f"{guilty}: an example's result depends on its companions in the batch, so {wrong} beside others"
            )

    def _check_memory(self) -> None:
        """Look for outputs that change after another batch was seen in this mode, also outputs in evaluation mode."""
        others = self._companions(0)
        training = any(layer.training for layer in self.model.modules())
        for mode in (evaluating, nullcontext) if training else (nullcontext,):
            with torch.no_grad():
                with mode(self.model):
                    first = self._losses(self.images, self.labels)
                self._losses(others, self.labels)
                with mode(self.model):
                    second = self._losses(self.images, self.labels)
            if not torch.allclose(first, second, rtol=1e-4, atol=1e-6):
                guilty = self._first_difference(self.images, self.images, row=None)
                raise InputError(f"{guilty}: keeps something from one call to the next, or draws from no known stream")

    def _check_state(self, before: dict[str, Tensor]) -> None:
        for name, tensor in _state(self.model):
            if not torch.equal(tensor, before[name]):
                layer, _, attribute = name.rpartition(".")
                where = describe_layer(self.model, layer)
                raise InputError(
                    f"{where} changes its {attribute} in a forward pass, without noise: build it in .eval() mode"
                )

    def _first_difference(self, first: Tensor, second: Tensor, row: int | None) -> str:
        """Name the first layer whose output differs between two calls, in one row or in all."""
        calls = [self._record(batch, row) for batch in (first, second)]
        for (name, x, out), (_, other_x, other_out) in zip(*calls, strict=False):
            if out is None or other_out is None or _close(out, other_out):
                continue
            if x is None or other_x is None or _close(x, other_x):
                return describe_layer(self.model, name)
            return f"what {self._where} computes before {describe_layer(self.model, name)}"
        return self._where

    @torch.no_grad()
    def _record(self, images: Tensor, row: int | None) -> list[tuple[str, Tensor | None, Tensor | None]]:
        calls: list[tuple[str, Tensor | None, Tensor | None]] = []

        def part(value: Any) -> Tensor | None:
            value = value[0] if isinstance(value, tuple) and value else value
            if not isinstance(value, Tensor) or (row is not None and len(value) != len(images)):
                return None
            return value.clone() if row is None else value[row if len(images) > 1 else 0].clone()

        def hook(name: str) -> Callable[..., None]:
            return lambda layer, inputs, output: calls.append((name, part(inputs), part(output)))

        with ExitStack() as stack:
            for name, layer in self.model.named_modules():
                stack.callback(layer.register_forward_hook(hook(name)).remove)
            self._losses(images, self.labels[: len(images)])
        return calls

    @contextmanager
    def _at_other_weights(self) -> Iterator[None]:
        """Add a tenth of its scale to every trainable weight, and multiply precisely."""
        with _as_found(self.model), full_precision():
            _move(self._trainable.values())
            yield


@torch.no_grad()
def _move(parameters: Iterable[nn.Parameter]) -> None:
    noise = torch.Generator().manual_seed(0)
    for parameter in parameters:
        scale = 0.1 * parameter.float().square().mean().sqrt()
        moved = torch.randn(parameter.shape, generator=noise).to(parameter)
        parameter.add_(moved * torch.where(scale > 0, scale, 0.05).to(parameter))


def _norm(tensors: list[Tensor]) -> Tensor:
    return torch.stack([t.norm() for t in tensors]).norm()


def _turned(images: Tensor) -> Tensor:
    return images.flip(tuple(range(1, images.dim())))


def _is(i: int, images: Tensor) -> Tensor:
    mask = torch.zeros(len(images), dtype=torch.bool, device=images.device)
    mask[i] = True
    return mask.reshape(-1, *[1] * (images.dim() - 1))


def _close(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a.double(), b.double(), rtol=1e-4, atol=1e-5, equal_nan=True)


def _state(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


@contextmanager
def _as_found(model: nn.Module) -> Iterator[None]:
    """Put back parameters and buffers, bit for bit."""
    kept = [(tensor, tensor.detach().clone()) for _, tensor in _state(model)]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, value in kept:
                tensor.copy_(value)


def _generator_state(device: torch.device) -> bytes:
    """Return a fingerprint of every stream that a network may draw from."""
    streams = [g.get_state().numpy().tobytes() for g in generators(device)]
    return b"".join(streams) + pickle.dumps((np.random.get_state(), random.getstate()))  # noqa: NPY002
