"""A small strided convolutional network, smooth (tanh) or piecewise linear (ReLU)."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn

from libmodels.tanh import Tanh


class SmallCNN(nn.Module):
    """Two strided 5x5 convolutions (16 and 32 maps), 4x4 average pooling, 64 units.

    Args:
        num_classes: Number of logits.
        in_channels: Channels of the input; any height and width from 16 up.
        activation: "tanh" or "relu".
    """

    def __init__(self, num_classes: int, in_channels: int, activation: str = "tanh") -> None:
        super().__init__()
        act = {"tanh": Tanh, "relu": nn.ReLU}[activation]
        self.features = nn.Sequential(
            nn.Conv2d(in_channels, 16, 5, stride=2, padding=2), act(),
            nn.Conv2d(16, 32, 5, stride=2, padding=2), act(),
            GridAverages(4), nn.Flatten(),
        )  # fmt: skip
        self.classifier = nn.Sequential(nn.Linear(512, 64), act(), nn.Linear(64, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits, shape (B, num_classes)."""
        return self.classifier(self.features(x))


class GridAverages(nn.Module):
    """What nn.AdaptiveAvgPool2d(size) computes, as a product with one matrix: up to five times as fast on a CPU.

    Args:
        size: Height and width of the output.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        """Return the averages over a grid, (B, C, H, W) to (B, C, size, size)."""
        averages = _averages(x.shape[2], x.shape[3], self.size, x.dtype, x.device)
        return (x.flatten(2) @ averages).unflatten(2, (self.size, self.size))


@lru_cache
@torch.inference_mode(False)
def _averages(height: int, width: int, size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the matrix of the averages, shape (height width, size size); cells overlap where sizes do not divide."""

    def along(length: int) -> np.ndarray:
        matrix = np.zeros((size, length))
        for cell in range(size):
            first, stop = cell * length // size, -(-(cell + 1) * length // size)
            matrix[cell, first:stop] = 1 / (stop - first)
        return matrix

    matrix = np.kron(along(height), along(width)).T
    # NumPy's numbers belong to no transformation of torch.func that may be going on.
    averages = torch.from_numpy(matrix.astype(np.float64 if dtype == torch.float64 else np.float32))
    return averages if (averages.dtype, averages.device) == (dtype, device) else averages.to(device, dtype)
