"""Per-example gradient norms and clipped gradient sums from one backward pass.

Ghost clipping (Goodfellow, arXiv 1510.01799; mixed form for convolutions: Bu et al., arXiv 2205.10683) finds each
example's gradient norm from a layer's inputs and the gradients at its outputs. The clipped sum follows from the
same two tensors (book-keeping: Bu et al., arXiv 2210.00038), so no second backward pass is needed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from opacus.grad_sample import GradSampleModule
from opacus.utils.tensor_utils import unfold2d
from torch import Tensor, nn

# Squared norms of the examples' gradients, (B,), and a function from factors (B,) to the weighted gradient sums.
_LayerGradients = tuple[Tensor, Callable[[Tensor], dict[Tensor, Tensor]]]

# Numbers of a convolution's unfolded input in memory at once: what stays in a CPU's cache, or bounds a GPU's memory.
_PATCHES_CPU, _PATCHES_GPU = 2**19, 2**27


class PerExampleGradients:
    """Reads per-example gradients of the cross-entropy off a network that is otherwise left as it is.

    `nn.Linear` on vectors and plain `nn.Conv2d` have formulas of their own; any other layer with parameters goes
    through Opacus's per-sample gradient for its type.

    Args:
        model: A network whose examples do not mix (no BatchNorm).

    Raises:
        ValueError: A trainable parameter belongs to a layer without a per-sample gradient.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._layers = [
            layer for layer in model.modules() if any(p.requires_grad for p in layer.parameters(recurse=False))
        ]
        for layer in self._layers:
            if type(layer) not in GradSampleModule.GRAD_SAMPLERS:
                raise ValueError(f"no per-example gradient is known for a layer of type {type(layer).__name__}")

    def norms(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return the L2 norm of each example's gradient over all parameters, shape (B,).

        Args:
            images: Inputs, shape (B, C, H, W), B >= 1.
            labels: Classes, int64, shape (B,).
        """
        layers, _, _ = self._backward(images, labels)
        return _norms(layers)

    def clipped_sum(
        self, images: Tensor, labels: Tensor, max_grad_norm: float
    ) -> tuple[dict[Tensor, Tensor], Tensor, Tensor]:
        """Sum the gradients, each scaled by min(1, C / (its norm + 1e-6)) as Opacus does.

        Args:
            images: Inputs, shape (B, C, H, W), B >= 1.
            labels: Classes, int64, shape (B,).
            max_grad_norm: Clipping norm C > 0.

        Returns:
            The sum per parameter, the losses (B,) and the logits (B, K).
        """
        layers, losses, logits = self._backward(images, labels)
        factor = (max_grad_norm / (_norms(layers) + 1e-6)).clamp(max=1)
        sums: dict[Tensor, Tensor] = {}
        with torch.no_grad():
            for _, weighted_sums in layers:
                sums |= weighted_sums(factor)
        return sums, losses, logits

    def _backward(self, images: Tensor, labels: Tensor) -> tuple[list[_LayerGradients], Tensor, Tensor]:
        calls: list[tuple[nn.Module, Tensor, Tensor, int]] = []

        def record(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            calls.append((layer, inputs[0].detach(), output, inputs[0]._version))

        handles = [layer.register_forward_hook(record) for layer in self._layers]
        try:
            logits = self.model(images)
        finally:
            for handle in handles:
                handle.remove()
        if {layer for layer, *_ in calls} != set(self._layers) or len(calls) != len(self._layers):
            raise ValueError("every layer with parameters must be called exactly once in a forward pass")
        for layer, inputs, output, version in calls:
            if inputs._version != version or output._version:
                raise ValueError(f"an input or output of a {type(layer).__name__} layer is changed in place")
        losses = F.cross_entropy(logits, labels, reduction="none")
        gradients = torch.autograd.grad(losses.sum(), [output for _, _, output, _ in calls])
        with torch.no_grad():
            layers = [
                _formula(layer, inputs)(layer, inputs, gradient)
                for (layer, inputs, _, _), gradient in zip(calls, gradients, strict=True)
            ]
        return layers, losses.detach(), logits.detach()


def _norms(layers: list[_LayerGradients]) -> Tensor:
    return torch.stack([squares for squares, _ in layers]).sum(0).sqrt()


def _formula(layer: nn.Module, inputs: Tensor) -> Callable[[Any, Tensor, Tensor], _LayerGradients]:
    if all(p.requires_grad for p in layer.parameters()):
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
    rows = max(1, (_PATCHES_CPU if inputs.device.type == "cpu" else _PATCHES_GPU) // (positions * values))
    parts = []
    for x, b in zip(inputs.split(rows), outer.split(rows), strict=True):
        patches = _patches(layer, x)  # (rows, T, P): P values under the kernel at T output positions
        if positions * (values + maps) < values * maps:
            gram = torch.bmm(patches, patches.transpose(1, 2)) * torch.bmm(b.transpose(1, 2), b)
            parts.append(gram.sum((1, 2)).clamp(min=0))
        else:
            parts.append(torch.linalg.vector_norm(torch.bmm(b, patches), dim=(1, 2)).square())
    squares = torch.cat(parts)
    if layer.bias is not None:
        squares = squares + outer.sum(2).square().sum(1)

    def weighted_sums(factor: Tensor) -> dict[Tensor, Tensor]:
        scaled = gradient * factor[:, None, None, None]
        biases = None if layer.bias is None else [len(layer.bias)]
        _, weight, bias = torch.ops.aten.convolution_backward(
            scaled, inputs, layer.weight, biases, layer.stride, layer.padding, layer.dilation,
            False, [0, 0], 1, [False, True, layer.bias is not None],
        )  # fmt: skip
        sums: dict[Tensor, Tensor] = {layer.weight: weight}
        return sums if layer.bias is None else sums | {layer.bias: bias}

    return squares, weighted_sums


def _patches(layer: Any, images: Tensor) -> Tensor:
    """Return the values under the kernel at every output position, shape (B, T, P), in any order of the P."""
    if images.shape[1] == 1:  # channels last would leave runs of one kernel width to copy
        return unfold2d(
            images.contiguous(),
            kernel_size=layer.kernel_size,
            padding=layer.padding,
            stride=layer.stride,
            dilation=layer.dilation,
        ).transpose(1, 2)
    (up, left), (down, right) = layer.padding, layer.stride
    padded = F.pad(images, (left, left, up, up)).permute(0, 2, 3, 1).contiguous()
    windows = padded.unfold(1, layer.kernel_size[0], down).unfold(2, layer.kernel_size[1], right)
    return windows.permute(0, 1, 2, 4, 5, 3).flatten(3).flatten(1, 2)


@torch.no_grad()
def _any_layer(layer: nn.Module, inputs: Tensor, gradient: Tensor) -> _LayerGradients:
    # Opacus unfolds a convolution's input as if it were contiguous, whatever its layout.
    samples = GradSampleModule.GRAD_SAMPLERS[type(layer)](layer, [inputs.contiguous()], gradient.contiguous())
    squares = sum(sample.flatten(1).square().sum(1) for sample in samples.values())

    def weighted_sums(factor: Tensor) -> dict[Tensor, Tensor]:
        return {p: torch.einsum("n,n...->...", factor, sample) for p, sample in samples.items()}

    return squares, weighted_sums
