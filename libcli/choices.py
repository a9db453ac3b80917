"""Flags that say which data and which network are meant."""

from __future__ import annotations

import libcli as cli
from libcli.settings import add_settings, read_settings

import argparse
from typing import TYPE_CHECKING

from libdata.choice import DataChoice
from libmodels import ARCHITECTURES

if TYPE_CHECKING:
    from libmodels.networks import Network


def add_choices(parser: cli.Parser, *, dataset: str = "mnist", arch: str = "smallcnn", private: bool = False) -> None:
    """Add the flags of data and network; `private` shows the network's defaults in private training."""
    from libmodels.networks import NetworkChoice

    add_settings(parser, DataChoice, dataset=dataset)
    add_settings(parser, NetworkChoice, arch=arch)
    cli.add_architecture_options(parser, ARCHITECTURES, private=private)


def read_data(args: argparse.Namespace) -> DataChoice:
    """Return the choice of data that parsed flags make."""
    return read_settings(DataChoice, args)


def read_network(args: argparse.Namespace, *, private: bool = False) -> Network:
    """Return the network that parsed flags name.

    Raises:
        InputError: It is unknown, cannot be imported, or has no such option.
    """
    from libmodels.networks import NetworkChoice, find_network

    choice = read_settings(NetworkChoice, args)
    return find_network(choice, cli.architecture_options(args, ARCHITECTURES), private=private)
