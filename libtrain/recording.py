"""What a training shows of each of its examples on the way, kept epoch by epoch.

Loss and correctness are those of the training's own forward passes, in training mode, before the step, and so cost next
to nothing; so does the gradient by the input, which the backward pass is asked for, too. The variance of gradients
takes another pass per epoch, in evaluation mode.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from libscores.logit_scores import losses
from libstore.errors import InputError
from libtrain.settings import RecordSettings
from libtrain.streams import evaluating

_PASS = 256


class Recorder:
    """Keeps what is seen of n examples over E epochs.

    Args:
        settings: What to keep.
        epochs: E.
        images: Inputs of the examples, (n, ...), on the device of the training.
        labels: Their classes, (n,).

    Raises:
        InputError: Gradients by inputs that are token ids are asked for.
    """

    def __init__(self, settings: RecordSettings, epochs: int, images: Tensor, labels: Tensor) -> None:
        self.settings, self._images, self._labels = settings, images, labels
        check_recordable(settings, images)
        n, device = len(labels), images.device
        self.kept: dict[str, Tensor] = {
            "loss": torch.zeros(epochs, n, device=device),
            "correct": torch.zeros(epochs, n, dtype=torch.bool, device=device),
            "weight_norm": torch.zeros(epochs),
        }
        if settings.record_input_gradients:
            self.kept["input_gradient_norm"] = torch.zeros(epochs, n, device=device)
        self.moments = [torch.zeros_like(images) for _ in range(2)] if settings.record_vog else []

    def inputs(self, x: Tensor) -> Tensor:
        """Return a batch as the network should get it."""
        if not self.settings.record_input_gradients:
            return x
        self._inputs = x.requires_grad_()
        return self._inputs.clone()  # which a network may write to

    def batch(self, epoch: int, rows: Tensor, logits: Tensor) -> None:
        """Keep a batch after its backward pass.

        Args:
            epoch: From 0.
            rows: Rows of its examples, (b,).
            logits: (b, K), of what `inputs` returned.

        Raises:
            InputError: The loss has no gradient by the input.
        """
        labels, logits = self._labels[rows], logits.detach().float()
        self.kept["loss"][epoch, rows] = losses(logits, labels)
        self.kept["correct"][epoch, rows] = logits.argmax(1) == labels
        if self.settings.record_input_gradients:
            gradient = self._inputs.grad  # of the mean over the batch
            if gradient is None:
                raise InputError("--record_input_gradients: the network passes no gradient on to its input")
            norms = torch.linalg.vector_norm(gradient.flatten(1), dim=1) * len(rows)
            self.kept["input_gradient_norm"][epoch, rows] = norms

    def end_epoch(self, epoch: int, model: nn.Module) -> None:
        """Keep what there is to say of the network after an epoch."""
        weights = [parameter.detach().flatten() for parameter in model.parameters()]
        self.kept["weight_norm"][epoch] = torch.linalg.vector_norm(torch.cat(weights)).cpu()
        if not self.moments:
            return
        mean, squares = self.moments
        with evaluating(model):
            for rows in torch.arange(len(self._labels), device=self._labels.device).split(_PASS):
                x = self._images[rows].requires_grad_()
                of_label = model(x.clone()).gather(1, self._labels[rows, None]).sum()
                (gradient,) = torch.autograd.grad(of_label, x)
                delta = gradient - mean[rows]
                mean[rows] += delta / (epoch + 1)
                squares[rows] += delta * (gradient - mean[rows])

    def state(self) -> dict[str, Any]:
        """Return all of it, for an unfinished training."""
        return {"kept": self.kept, "moments": self.moments}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on with what `state` returned."""
        for name, values in self.kept.items():
            values.copy_(state["kept"][name])
        for values, there in zip(self.moments, state["moments"], strict=True):
            values.copy_(there)

    def arrays(self) -> dict[str, np.ndarray]:
        """Return what libstore.trajectories keeps, but for the index.

        `vog` is Agarwal et al.'s score (2022, arXiv 2008.11600, not normalised by class): the
        deviation over epochs of the gradient of the label's logit by the input, averaged over the input's values.
        """
        found = {name: values.cpu().numpy() for name, values in self.kept.items()}
        if self.moments:
            deviation = (self.moments[1] / len(self.kept["weight_norm"])).clamp(min=0).sqrt()
            found["vog"] = deviation.flatten(1).mean(1).cpu().numpy()
        return found


def check_recordable(settings: RecordSettings, images: Tensor) -> None:
    """Refuse gradients by inputs that are no numbers.

    Raises:
        InputError: The inputs are token ids.
    """
    for flag in ("record_input_gradients", "record_vog"):
        if getattr(settings, flag) and not images.is_floating_point():
            raise InputError(f"--{flag}: the inputs are token ids, which have no gradient")
