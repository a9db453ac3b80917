"""Architectures, chosen by name from one table; what builds one is imported when it is asked for."""

from __future__ import annotations

import libcli  # noqa: F401  (first: a Ctrl-C while libraries load is one line)

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Architecture:
    """One row of the table: how to build a network, its options and the image size it needs.

    Attributes:
        path: module:class of the network, called with num_classes, in_channels and the options.
        options: Allowed values of each option; the first is the default.
        image_size: Height and width that images are resized to, or None for any.
        private: Options that private training takes by default in place of the first ones.
    """

    path: str
    options: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    image_size: int | None = None
    private: Mapping[str, str] = field(default_factory=dict)

    def build(self, **arguments: object) -> nn.Module:
        """Return a freshly initialised network."""
        module, name = self.path.split(":")
        make: Callable[..., nn.Module] = getattr(importlib.import_module(module), name)
        return make(**arguments)


ARCHITECTURES = {
    "lenet5": Architecture("libmodels.lenet5:LeNet5", image_size=32),
    "smallcnn": Architecture("libmodels.smallcnn:SmallCNN", {"activation": ("tanh", "relu")}),
    "resnet18": Architecture("libmodels.resnet18:ResNet18", {"norm": ("batch", "group")}, private={"norm": "group"}),
    "small_inception": Architecture("libmodels.small_inception:SmallInception"),
    "resnet50": Architecture("libmodels.resnet50:ResNet50", {"resnet_version": ("v1", "v2")}, image_size=224),
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
