"""LeNet-5 with tanh and average pooling, the per-instance study's network."""

from __future__ import annotations

from torch import Tensor, nn

from libmodels.tanh import Tanh


class LeNet5(nn.Module):
    """LeNet-5 (LeCun et al. 1998) for 32x32 inputs: 6, 16 and 120 maps of 5x5, then 84 units.

    Args:
        num_classes: Number of logits.
        in_channels: Channels of the input; input shape is (B, in_channels, 32, 32).
    """

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(in_channels, 6, 5), Tanh(), nn.AvgPool2d(2),
            nn.Conv2d(6, 16, 5), Tanh(), nn.AvgPool2d(2),
            nn.Conv2d(16, 120, 5), Tanh(), nn.Flatten(),
        )  # fmt: skip
        self.classifier = nn.Sequential(nn.Linear(120, 84), Tanh(), nn.Linear(84, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits, shape (B, num_classes)."""
        return self.classifier(self.features(x))
