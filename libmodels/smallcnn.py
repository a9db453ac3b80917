"""A small strided convolutional network, smooth (tanh) or piecewise linear (ReLU)."""

from __future__ import annotations

from torch import Tensor, nn


class SmallCNN(nn.Module):
    """Two strided 5x5 convolutions (16 and 32 maps), 4x4 average pooling, 64 units.

    Args:
        num_classes: Number of logits.
        in_channels: Channels of the input; any height and width from 16 up.
        activation: "tanh" or "relu".
    """

    def __init__(self, num_classes: int, in_channels: int, activation: str = "tanh") -> None:
        super().__init__()
        act = {"tanh": nn.Tanh, "relu": nn.ReLU}[activation]
        self.features = nn.Sequential(
            nn.Conv2d(in_channels, 16, 5, stride=2, padding=2), act(),
            nn.Conv2d(16, 32, 5, stride=2, padding=2), act(),
            nn.AdaptiveAvgPool2d(4), nn.Flatten(),
        )  # fmt: skip
        self.classifier = nn.Sequential(nn.Linear(512, 64), act(), nn.Linear(64, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits, shape (B, num_classes)."""
        return self.classifier(self.features(x))
