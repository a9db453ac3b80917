"""ResNet-18 for 32x32 images (He et al. 2016, arXiv 1512.03385), with BatchNorm or GroupNorm."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


def _norm(kind: str, channels: int) -> nn.Module:
    return nn.BatchNorm2d(channels) if kind == "batch" else nn.GroupNorm(min(32, channels), channels)


class _BasicBlock(nn.Module):
    def __init__(self, in_channels: int, channels: int, stride: int, norm: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.norm1 = _norm(norm, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = _norm(norm, channels)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False), _norm(norm, channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.norm1(self.conv1(x)))
        out = self.norm2(self.conv2(out))
        return F.relu(out + self.shortcut(x))  # per-sample gradient hooks do not survive an in-place add


class ResNet18(nn.Module):
    """ResNet-18 with a 3x3 stride-1 stem and no max pooling.

    Args:
        num_classes: Number of logits.
        in_channels: Channels of the input.
        norm: "batch" (BatchNorm2d) or "group" (GroupNorm with 32 groups, as DP-SGD needs).
    """

    def __init__(self, num_classes: int, in_channels: int, norm: str = "batch") -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(in_channels, 64, 3, padding=1, bias=False), _norm(norm, 64), nn.ReLU())
        widths = (64, 64, 128, 256, 512)
        blocks: list[nn.Module] = []
        for before, after in zip(widths, widths[1:], strict=False):
            blocks += [
                _BasicBlock(before, after, 1 if before == after else 2, norm),
                _BasicBlock(after, after, 1, norm),
            ]
        self.blocks = nn.Sequential(*blocks)
        self.classifier = nn.Linear(512, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits, shape (B, num_classes)."""
        return self.classifier(self.blocks(self.stem(x)).mean((2, 3)))
