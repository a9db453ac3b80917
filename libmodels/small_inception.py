"""SmallInception, the CIFAR network of Feldman and Zhang's released ensembles (arXiv 2008.03703)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STAGES = (
    ((32, 32), (32, 48)),
    ((112, 48), (96, 64), (80, 80), (48, 96)),
    ((176, 160), (176, 160)),
)
DOWNSAMPLE = (160, 240, None)


class _SameConv2d(nn.Conv2d):
    """An odd-sized convolution with TensorFlow's "SAME" padding: the odd pixel goes right and bottom."""

    def forward(self, x: Tensor) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        totals = [max((-(-size // stride) - 1) * stride + kernel - size, 0) for size in x.shape[-2:]]
        high, wide = (total // 2 for total in totals)
        if any(total % 2 for total in totals):
            x = F.pad(x, (wide, totals[1] - wide, high, totals[0] - high))
            high = wide = 0
        return F.conv2d(x, self.weight, stride=stride, padding=(high, wide))


class _ConvBNReLU(nn.Module):
    def __init__(self, in_channels: int, channels: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = _SameConv2d(in_channels, channels, kernel, stride, bias=False)
        self.bn = nn.BatchNorm2d(channels, eps=1e-5, momentum=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class _Block(nn.Module):
    def __init__(self, in_channels: int, channels_1x1: int, channels_3x3: int) -> None:
        super().__init__()
        self.conv1x1 = _ConvBNReLU(in_channels, channels_1x1, 1)
        self.conv3x3 = _ConvBNReLU(in_channels, channels_3x3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.conv1x1(x), self.conv3x3(x)], 1)


class _Stage(nn.Module):
    def __init__(self, in_channels: int, widths: tuple[tuple[int, int], ...], downsample: int | None) -> None:
        super().__init__()
        blocks = []
        for width in widths:
            blocks.append(_Block(in_channels, *width))
            in_channels = sum(width)
        self.body = nn.Sequential(*blocks)
        self.downsample = _ConvBNReLU(in_channels, downsample, 3, stride=2) if downsample else None
        self.out_channels = downsample or in_channels

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        return x if self.downsample is None else self.downsample(x)


class SmallInception(nn.Module):
    """SmallInception as Sonnet computes it: "SAME" padding, BatchNorm with eps 1e-5, global max pooling.

    Args:
        num_classes: Number of logits.
        in_channels: Channels of the input; pixels in [0, 1], any height and width.
    """

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.conv1 = _ConvBNReLU(in_channels, 96, 3)
        self.stage1 = _Stage(96, STAGES[0], DOWNSAMPLE[0])
        self.stage2 = _Stage(self.stage1.out_channels, STAGES[1], DOWNSAMPLE[1])
        self.stage3 = _Stage(self.stage2.out_channels, STAGES[2], DOWNSAMPLE[2])
        self.pred = nn.Linear(self.stage3.out_channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits, shape (B, num_classes)."""
        x = self.stage3(self.stage2(self.stage1(self.conv1(x))))
        return self.pred(x.amax((2, 3)))
