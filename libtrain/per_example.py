"""Per-example gradient norms and clipped gradient sums, in the fastest of three ways that is right for a network.

Ghost clipping (Goodfellow, arXiv 1510.01799; mixed form for convolutions: Bu et al., arXiv 2205.10683) finds each
example's gradient norm from a layer's inputs and the gradients at its outputs. The clipped sum follows from the
same two tensors (book-keeping: Bu et al., arXiv 2210.00038), so no second backward pass is needed. Where that is not
the gradient (a weight used twice or outside of its layer, a layer without a formula), every example's gradient is
computed whole: by `torch.func.vmap`, or where that cannot be, by one backward pass an example.
"""

from __future__ import annotations

import libcli as cli

import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.func import functional_call, grad, vmap

from libscores.curvature import full_precision
from libstore.errors import InputError
from libtrain.precision import logits_of, multiplying
from libtrain.self_check import (
    FAILURES,
    Chunk,
    FirstBatch,
    Way,
    check_parameters,
    describe_layer,
    first_line,
    raise_for_cli,
)

# Squared norms of the examples' gradients, (B,), and a function from factors (B,) to the weighted gradient sums.
_LayerGradients = tuple[Tensor, Callable[[Tensor], dict[Tensor, Tensor]]]

# Numbers of a convolution's unfolded input in memory at once: what stays in a CPU's cache, or bounds a GPU's memory.
_PATCHES_CPU, _PATCHES_GPU = 2**18, 2**27
_COARSE = {"tf32": 0.1, "bf16": 0.5}
"""Share of its norm that a layer's gradient may be off in a coarse precision; float32 and the formulas keep 1e-3.

Measured in bfloat16 on fresh networks: 0.008 for LeNet, 0.085 with ReLU, 0.27 for ResNet-18, whose kinks flip."""
# Numbers of a layer's per-example gradients that are kept for the weighted sum, which is then one pass over them.
_KEPT_CPU, _KEPT_GPU = 2**23, 2**28
# Numbers of whole per-example gradients in memory at once.
_GRADIENTS_CPU, _GRADIENTS_GPU = 2**24, 2**28


class PerExampleGradients:
    """Reads per-example gradients of the cross-entropy off a network that is otherwise left as it is.

    In the layer-wise way `nn.Linear` on vectors, `nn.Embedding` and plain `nn.Conv2d` have formulas of their own; any
    other layer with parameters goes through Opacus's per-sample gradient for its type. The first batch in every mode is
    compared with autograd (`FirstBatch`), and the first way that agrees is taken; a line on stderr says so if it is a
    slower one.

    A coarse precision is for the passes through the network alone. Norms and weighted sums of what these leave are in
    float32, so that the bound on what an example adds is not rounded with them. The comparison is in float32 first,
    then of the chosen way in the chosen precision, within `_COARSE`.

    Args:
        model: A network whose examples do not mix (no BatchNorm in training mode).
        precision: One of `libtrain.settings.PRECISIONS`.

    Raises:
        InputError: It has no parameter to train.
    """

    def __init__(self, model: nn.Module, precision: str = "float32") -> None:
        check_parameters(model)
        self.model, self._precision = model, precision
        self._parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._layers = [
            layer for layer in model.modules() if any(p.requires_grad for p in layer.parameters(recurse=False))
        ]
        self._ways: dict[tuple[bool, ...], Way] = {}
        self._said: set[str] = set()

    def norms(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return the L2 norm of each example's gradient over all parameters, shape (B,).

        Args:
            images: Inputs, shape (B, ...), B >= 1.
            labels: Classes, int64, shape (B,).

        Raises:
            InputError: On the first batch: the network mixes examples, or no way gives its gradients.
        """
        with full_precision():
            return torch.cat([norms for norms, *_ in self._chunks(images, labels)])

    def clipped_sum(
        self, images: Tensor, labels: Tensor, max_grad_norm: float
    ) -> tuple[dict[Tensor, Tensor], Tensor, Tensor]:
        """Sum the gradients, each scaled by min(1, C / (its norm + 1e-6)) as Opacus does.

        Args:
            images: Inputs, shape (B, ...), B >= 1.
            labels: Classes, int64, shape (B,).
            max_grad_norm: Clipping norm C > 0.

        Returns:
            The sum per parameter, the losses (B,) and the logits (B, K).

        Raises:
            InputError: As `norms`.
        """
        total: dict[Tensor, Tensor] = {}
        parts = []
        with full_precision():
            for norms, weighted_sums, losses, logits in self._chunks(images, labels):
                with torch.no_grad():
                    sums = weighted_sums((max_grad_norm / (norms + 1e-6)).clamp(max=1))
                    total = {p: total[p] + value if p in total else value for p, value in sums.items()}
                parts.append((losses, logits))
        losses, logits = (torch.cat(part) for part in zip(*parts, strict=True))
        return {p: total[p] if p in total else torch.zeros_like(p) for p in self._parameters.values()}, losses, logits

    def check(self, images: Tensor, labels: Tensor) -> FirstBatch:
        """Choose the way for the network's present mode from a few examples.

        Raises:
            InputError: As `norms`.
        """
        first = FirstBatch(self.model, images, labels)
        precision, self._precision = self._precision, "float32"
        try:
            way, replays = self._right_way(first)
        finally:
            self._precision = precision
        if precision != "float32" and (problem := first.difference(way, replays=replays, relative=_COARSE[precision])):
            raise InputError(f"--precision {precision}: beside float32, {problem}")
        self._ways[self._mode()] = way
        return first

    def _right_way(self, first: FirstBatch) -> tuple[Way, bool]:
        ways = (
            ("by layers", self._by_layers, True),
            ("by vmap", self._by_vmap, False),
            ("singly", self._singly, False),
        )
        wrong: list[str] = []
        for name, way, replays in ways:
            problem = first.difference(way, replays=replays)
            if problem is None:
                if wrong and name not in self._said:
                    cli.warn(f"per-example gradients {name}, which is slower than by layers: {wrong[0]}")
                    self._said.add(name)
                return way, replays
            wrong.append(problem)
        raise InputError(f"{type(self.model).__name__}: no way to its per-example gradients: {wrong[-1]}")

    def check_mode(self, images: Tensor, labels: Tensor) -> None:
        """Check the network unless it was checked in the modes its layers are in; raises InputError as `norms`."""
        if self._mode() not in self._ways:
            self.check(images, labels)

    def _name(self, layer: nn.Module) -> str:
        return describe_layer(self.model, next(name for name, found in self.model.named_modules() if found is layer))

    def _mode(self) -> tuple[bool, ...]:
        return tuple(layer.training for layer in self.model.modules())

    def _chunks(self, images: Tensor, labels: Tensor) -> Iterator[Chunk]:
        self.check_mode(images, labels)
        try:
            yield from self._ways[self._mode()](images, labels)
        except FAILURES as error:
            raise_for_cli(error)
            raise InputError(f"{type(self.model).__name__}: no per-example gradients: {first_line(error)}") from error

    def _by_layers(self, images: Tensor, labels: Tensor) -> Iterator[Chunk]:
        for layer in self._layers:
            if not _has_formula(type(layer)) or not {*layer._parameters} <= {"weight", "bias"}:
                raise ValueError(f"{self._name(layer)} has no formula")
        calls: list[tuple[nn.Module, Tensor, int, Tensor, GradientEdge]] = []

        def record(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            calls.append((layer, inputs[0].detach(), inputs[0]._version, output, get_gradient_edge(output)))

        handles = [layer.register_forward_hook(record) for layer in self._layers]
        with multiplying(self._precision):
            try:
                logits = logits_of(self.model, images, self._precision)
            finally:
                for handle in handles:
                    handle.remove()
        if twice := [layer for layer, count in Counter(layer for layer, *_ in calls).items() if count > 1]:
            raise ValueError(f"{self._name(twice[0])} is called more than once in a forward pass")
        losses = F.cross_entropy(logits, labels, reduction="none")
        with multiplying(self._precision):
            gradients = torch.autograd.grad(losses.sum(), [edge for *_, edge in calls], allow_unused=True)
        layers = []
        for (layer, inputs, version, output, _), gradient in zip(calls, gradients, strict=True):
            if inputs._version != version or (gradient is None and output._version):
                raise ValueError(f"an input or output of {self._name(layer)} is changed in place")
            if gradient is not None:
                if self._precision == "bf16":
                    inputs, gradient = (t.float() if t.is_floating_point() else t for t in (inputs, gradient))
                try:
                    layers.append(_formula(layer, inputs)(layer, inputs, gradient))
                except FAILURES as error:
                    raise_for_cli(error)
                    raise ValueError(f"{self._name(layer)} has no formula: {first_line(error)}") from error

        def weighted_sums(factor: Tensor) -> dict[Tensor, Tensor]:
            return {p: value for _, sums in layers for p, value in sums(factor).items()}

        yield _norms(layers), weighted_sums, losses.detach(), logits.detach()

    def _by_vmap(self, images: Tensor, labels: Tensor) -> Iterator[Chunk]:
        def loss(parameters: dict[str, Tensor], image: Tensor, label: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
            logits = logits_of(partial(_called, self.model, parameters), image[None], self._precision)
            value = F.cross_entropy(logits, label[None])
            return value, (value.detach(), logits[0].detach())

        parameters = {name: p.detach() for name, p in self._parameters.items()}
        samples = vmap(grad(loss, has_aux=True), in_dims=(None, 0, 0), randomness="different")
        numbers = sum(p.numel() for p in parameters.values())
        rows = max(1, (_GRADIENTS_CPU if images.device.type == "cpu" else _GRADIENTS_GPU) // numbers)
        for x, y in zip(images.split(rows), labels.split(rows), strict=True):
            with warnings.catch_warnings(), multiplying(self._precision):
                warnings.filterwarnings("ignore", message="There is a performance drop")
                found, (losses, logits) = samples(parameters, x, y)
            yield self._whole([found[name] for name in self._parameters], losses, logits)

    def _singly(self, images: Tensor, labels: Tensor) -> Iterator[Chunk]:
        parameters = list(self._parameters.values())
        for x, y in zip(images.split(1), labels.split(1), strict=True):
            with multiplying(self._precision):
                logits = logits_of(self.model, x, self._precision)
                losses = F.cross_entropy(logits, y, reduction="none")
                found = torch.autograd.grad(losses.sum(), parameters, allow_unused=True)
            gradients = [
                torch.zeros_like(p)[None] if g is None else g[None] for p, g in zip(parameters, found, strict=True)
            ]
            yield self._whole(gradients, losses.detach(), logits.detach())

    def _whole(self, gradients: list[Tensor], losses: Tensor, logits: Tensor) -> Chunk:
        squares = torch.stack([g.flatten(1).square().sum(1) for g in gradients])

        def weighted_sums(factor: Tensor) -> dict[Tensor, Tensor]:
            pairs = zip(self._parameters.values(), gradients, strict=True)
            return {p: torch.einsum("n,n...->...", factor, g) for p, g in pairs}

        return squares.sum(0).sqrt(), weighted_sums, losses, logits


def _called(model: nn.Module, parameters: dict[str, Tensor], images: Tensor) -> Tensor:
    return functional_call(model, parameters, (images,))


def _norms(layers: list[_LayerGradients]) -> Tensor:
    return torch.stack([squares for squares, _ in layers]).sum(0).sqrt()


def _has_formula(kind: type[nn.Module]) -> bool:
    return kind in (nn.Linear, nn.Conv2d, nn.Embedding) or kind in _opacus_formulas()


def _opacus_formulas() -> Mapping[type[nn.Module], Callable[..., dict[nn.Parameter, Tensor]]]:
    from opacus.grad_sample import GradSampleModule  # takes half as long to import as PyTorch, and most do without

    return GradSampleModule.GRAD_SAMPLERS


def _formula(layer: nn.Module, inputs: Tensor) -> Callable[[Any, Tensor, Tensor], _LayerGradients]:
    if all(p.requires_grad for p in layer.parameters()):
        if type(layer) is nn.Embedding and not layer.scale_grad_by_freq and not layer.sparse:
            return _embedding
        if type(layer) is nn.Linear and inputs.dim() == 2:
            return _linear
        if (
            type(layer) is nn.Conv2d
            and layer.groups == 1
            and layer.padding_mode == "zeros"
            and layer.dilation == (1, 1)
            and isinstance(layer.padding, tuple)
        ):
            return _conv2d
    return _any_layer


@torch.no_grad()
def _linear(layer: nn.Linear, inputs: Tensor, gradient: Tensor) -> _LayerGradients:
    squares = gradient.square().sum(1)
    weight_squares = inputs.square().sum(1) * squares

    def weighted_sums(factor: Tensor) -> dict[Tensor, Tensor]:
        scaled = gradient * factor[:, None]
        sums: dict[Tensor, Tensor] = {layer.weight: scaled.T @ inputs}
        return sums if layer.bias is None else sums | {layer.bias: scaled.sum(0)}

    return weight_squares if layer.bias is None else weight_squares + squares, weighted_sums


@torch.no_grad()
def _conv2d(layer: nn.Conv2d, inputs: Tensor, gradient: Tensor) -> _LayerGradients:
    outer = gradient.flatten(2)  # (B, O, T)
    maps, positions = outer.shape[1:]
    values = layer.weight[0].numel()
    on_cpu = inputs.device.type == "cpu"
    rows = max(1, (_PATCHES_CPU if on_cpu else _PATCHES_GPU) // (positions * values))
    parts, kept = [], []
    for x, b in zip(inputs.split(rows), outer.split(rows), strict=True):
        patches = _patches(layer, x)  # (rows, T, P): P values under the kernel at T output positions
        if positions * (values + maps) < values * maps:
            gram = torch.bmm(patches, patches.transpose(1, 2)) * torch.bmm(b.transpose(1, 2), b)
            parts.append(gram.sum((1, 2)).clamp(min=0))
        else:
            samples = torch.bmm(b, patches)  # (rows, O, P)
            parts.append(torch.linalg.vector_norm(samples, dim=(1, 2)).square())
            if len(inputs) * maps * values <= (_KEPT_CPU if on_cpu else _KEPT_GPU):
                kept.append(samples)
    squares, biases = torch.cat(parts), None if layer.bias is None else outer.sum(2)
    if biases is not None:
        squares = squares + biases.square().sum(1)

    def of_kept(factor: Tensor) -> dict[Tensor, Tensor]:
        weights = [f @ samples.flatten(1) for f, samples in zip(factor.split(rows), kept, strict=True)]
        shape = maps, *layer.kernel_size, layer.in_channels
        sums: dict[Tensor, Tensor] = {layer.weight: torch.stack(weights).sum(0).view(shape).permute(0, 3, 1, 2)}
        return sums if layer.bias is None or biases is None else sums | {layer.bias: factor @ biases}

    def weighted_sums(factor: Tensor) -> dict[Tensor, Tensor]:
        if kept:
            return of_kept(factor)
        scaled = gradient * factor[:, None, None, None]
        sizes = None if layer.bias is None else [maps]
        _, weight, bias = torch.ops.aten.convolution_backward(
            scaled, inputs, layer.weight, sizes, layer.stride, layer.padding, layer.dilation,
            False, [0, 0], 1, [False, True, layer.bias is not None],
        )  # fmt: skip
        sums: dict[Tensor, Tensor] = {layer.weight: weight}
        return sums if layer.bias is None else sums | {layer.bias: bias}

    return squares, weighted_sums


@torch.no_grad()
def _embedding(layer: nn.Embedding, inputs: Tensor, gradient: Tensor) -> _LayerGradients:
    """Sum, for every example, the gradients at each of its tokens: what is not a token of it has none."""
    if layer.padding_idx is not None:
        gradient = gradient.masked_fill((inputs == layer.padding_idx)[..., None], 0)
    ids, outer = inputs.flatten(1), gradient.reshape(len(inputs), -1, layer.embedding_dim)
    rows = torch.arange(len(ids), device=ids.device)[:, None] * layer.num_embeddings
    tokens, position = (rows + ids).unique(return_inverse=True)
    sums = outer.new_zeros(len(tokens), layer.embedding_dim).index_add_(0, position.flatten(), outer.flatten(0, 1))
    squares = outer.new_zeros(len(ids)).index_add_(0, tokens // layer.num_embeddings, sums.square().sum(1))

    def weighted_sums(factor: Tensor) -> dict[Tensor, Tensor]:
        scaled = (outer * factor[:, None, None]).flatten(0, 1)
        return {layer.weight: torch.zeros_like(layer.weight).index_add_(0, ids.flatten(), scaled)}

    return squares, weighted_sums


def _patches(layer: Any, images: Tensor) -> Tensor:
    """Return the values under the kernel at every output position, (B, T, P), the P as (height, width, channel)."""
    (up, left), (down, right), (height, width) = layer.padding, layer.stride, layer.kernel_size
    padded = F.pad(images, (left, left, up, up))
    if images.shape[1] == 1:  # channels last would leave runs of one kernel width to copy
        windows = padded[:, 0].unfold(1, height, down).unfold(2, width, right)
        return windows.permute(0, 3, 4, 1, 2).flatten(1, 2).flatten(2).transpose(1, 2)
    windows = padded.permute(0, 2, 3, 1).contiguous().unfold(1, height, down).unfold(2, width, right)
    return windows.permute(0, 1, 2, 4, 5, 3).flatten(3).flatten(1, 2)


@torch.no_grad()
def _any_layer(layer: nn.Module, inputs: Tensor, gradient: Tensor) -> _LayerGradients:
    # Opacus unfolds a convolution's input as if it were contiguous, whatever its layout.
    samples = _opacus_formulas()[type(layer)](layer, [inputs.contiguous()], gradient.contiguous())
    squares = torch.stack([sample.flatten(1).square().sum(1) for sample in samples.values()]).sum(0)

    def weighted_sums(factor: Tensor) -> dict[Tensor, Tensor]:
        return {p: torch.einsum("n,n...->...", factor, sample) for p, sample in samples.items()}

    return squares, weighted_sums
