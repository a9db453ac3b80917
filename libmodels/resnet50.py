"""ResNet-50 as dm-sonnet's snt.nets.ResNet50 computes it, in its two versions."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

_BLOCKS = (3, 4, 6, 3)
_CHANNELS = (256, 512, 1024, 2048)


def _conv(in_channels: int, channels: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """Return a convolution padded alike on both sides, as Sonnet's `pad.same` does whatever the stride."""
    return nn.Conv2d(in_channels, channels, kernel, stride, padding=kernel // 2, bias=False)


class _BlockV1(nn.Module):
    def __init__(self, in_channels: int, channels: int, stride: int, project: bool) -> None:
        super().__init__()
        inner = channels // 4
        self.layers = nn.ModuleList(
            nn.Sequential(conv, nn.BatchNorm2d(conv.out_channels))
            for conv in (_conv(in_channels, inner, 1), _conv(inner, inner, 3, stride), _conv(inner, channels, 1))
        )
        self.proj_conv = _conv(in_channels, channels, 1, stride) if project else nn.Identity()
        self.proj_batchnorm = nn.BatchNorm2d(channels) if project else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        shortcut = self.proj_batchnorm(self.proj_conv(x))
        first, second, third = self.layers
        return F.relu(third(F.relu(second(F.relu(first(x))))) + shortcut)


class _BlockV2(nn.Module):
    def __init__(self, in_channels: int, channels: int, stride: int, project: bool) -> None:
        super().__init__()
        inner = channels // 4
        self.bn_0, self.conv_0 = nn.BatchNorm2d(in_channels), _conv(in_channels, inner, 1)
        self.bn_1, self.conv_1 = nn.BatchNorm2d(inner), _conv(inner, inner, 3, stride)
        self.bn_2, self.conv_2 = nn.BatchNorm2d(inner), _conv(inner, channels, 1)
        self.proj_conv = _conv(in_channels, channels, 1, stride) if project else None

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn_0(x))
        shortcut = x if self.proj_conv is None else self.proj_conv(out)
        out = self.conv_1(F.relu(self.bn_1(self.conv_0(out))))
        return self.conv_2(F.relu(self.bn_2(out))) + shortcut


class _Group(nn.Module):
    def __init__(self, block: type[nn.Module], in_channels: int, channels: int, count: int, stride: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(
            block(in_channels, channels, stride, True),
            *(block(channels, channels, 1, False) for _ in range(count - 1)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x)


class ResNet50(nn.Module):
    """ResNet-50 (He et al., arXiv 1512.03385 and, pre-activated, 1603.05027) in Sonnet's arrangement.

    Convolutions are padded alike on all sides; the 3x3 max pooling of stride 2 has TensorFlow's "SAME"
    padding, which adds to the right and bottom only when the size is even. The stride of a block is in
    its 3x3 convolution. BatchNorm's eps is 1e-5.

    Args:
        num_classes: Number of logits.
        in_channels: Channels of the input.
        resnet_version: "v1" (Sonnet's default) or "v2" (BatchNorm and ReLU before each convolution).
    """

    def __init__(self, num_classes: int, in_channels: int, resnet_version: str = "v1") -> None:
        super().__init__()
        block = _BlockV1 if resnet_version == "v1" else _BlockV2
        self.initial_conv = _conv(in_channels, 64, 7, stride=2)
        self.initial_batchnorm = nn.BatchNorm2d(64) if resnet_version == "v1" else None
        before = (64, *_CHANNELS[:-1])
        self.block_groups = nn.Sequential(
            *(
                _Group(block, before[i], _CHANNELS[i], _BLOCKS[i], stride=1 if i == 0 else 2)
                for i in range(len(_BLOCKS))
            )
        )
        self.final_batchnorm = nn.BatchNorm2d(_CHANNELS[-1]) if resnet_version == "v2" else None
        self.logits = nn.Linear(_CHANNELS[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits, shape (B, num_classes)."""
        x = self.initial_conv(x)
        if self.initial_batchnorm is not None:
            x = F.relu(self.initial_batchnorm(x))
        # Even sizes: windows start at 0 and the last one overhangs; odd sizes: one pixel on each side.
        x = F.max_pool2d(x, 3, 2, padding=(x.shape[-2] % 2, x.shape[-1] % 2), ceil_mode=True)
        x = self.block_groups(x)
        if self.final_batchnorm is not None:
            x = F.relu(self.final_batchnorm(x))
        return self.logits(x.mean((2, 3)))
