"""Architectures, chosen by name from one table."""

from __future__ import annotations

import libdata.interrupts  # noqa: F401  (before PyTorch: a Ctrl-C while that loads is one line)

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import nn

from libmodels import lenet5, resnet50
from libmodels.lenet5 import LeNet5
from libmodels.resnet18 import ResNet18
from libmodels.resnet50 import ResNet50
from libmodels.small_inception import SmallInception
from libmodels.smallcnn import SmallCNN


@dataclass(frozen=True)
class Architecture:
    """One row of the table: how to build a network, its options and the image size it needs.

    Attributes:
        build: Called with num_classes, in_channels and the options.
        options: Allowed values of each option; the first is the default.
        image_size: Height and width that images are resized to, or None for any.
    """

    build: Callable[..., nn.Module]
    options: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    image_size: int | None = None


ARCHITECTURES = {
    "lenet5": Architecture(LeNet5, image_size=lenet5.IMAGE_SIZE),
    "smallcnn": Architecture(SmallCNN, {"activation": ("tanh", "relu")}),
    "resnet18": Architecture(ResNet18, {"norm": ("batch", "group")}),
    "small_inception": Architecture(SmallInception),
    "resnet50": Architecture(ResNet50, {"resnet_version": ("v1", "v2")}, image_size=resnet50.IMAGE_SIZE),
}


def build_model(name: str, *, num_classes: int, in_channels: int, **options: str) -> nn.Module:
    """Build a network with PyTorch's default initialisation, drawn from the global generator.

    Args:
        name: A key of `ARCHITECTURES`.
        num_classes: Number of logits.
        in_channels: Channels of the input images.
        options: Options of that architecture, for example norm="group".

    Returns:
        The network, in training mode.

    Raises:
        ValueError: The name, an option or its value is unknown.
    """
    if name not in ARCHITECTURES:
        raise ValueError(f"unknown architecture {name!r}; known: {', '.join(ARCHITECTURES)}")
    allowed = ARCHITECTURES[name].options
    for option, value in options.items():
        if option not in allowed:
            raise ValueError(f"architecture {name!r} has no option {option!r}; it has: {', '.join(allowed) or 'none'}")
        if value not in allowed[option]:
            raise ValueError(f"{name}: {option}={value!r} is unknown; known: {', '.join(allowed[option])}")
    return ARCHITECTURES[name].build(num_classes=num_classes, in_channels=in_channels, **options)
