"""Flags that say which data, which network, which scores and which private models are meant."""

from __future__ import annotations

import libcli as cli
from libcli.settings import add_settings, read_settings, words_of

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from libdata.choice import DataChoice
from libmodels import ARCHITECTURES
from libscoring.settings import ScoreSettings
from libstore.private_models import PrivateChoice, PrivateModel, find_private_models

if TYPE_CHECKING:
    import torch

    from libmodels.networks import Network
    from libscoring.scoring import Scoring
    from libstore.config import Config


def add_choices(
    parser: cli.Parser,
    *,
    dataset: str = "mnist",
    arch: str = "smallcnn",
    private: bool = False,
    kind: type[DataChoice] = DataChoice,
) -> None:
    """Add the flags of data, of a kind, and network; `private` shows the network's defaults in private training."""
    from libmodels.networks import NetworkChoice

    add_settings(parser, kind, dataset=dataset)
    add_settings(parser, NetworkChoice, arch=arch)
    cli.add_architecture_options(parser, ARCHITECTURES, private=private)


def flags_of_choices(args: argparse.Namespace, choice: DataChoice) -> tuple[str, str]:
    """Return the flags of data and of the network, as a command line takes them; but these, defaults are left out."""
    from libmodels.networks import NetworkChoice

    options = cli.architecture_options(args, ARCHITECTURES)
    network = words_of(read_settings(NetworkChoice, args), "arch")
    network += [word for key, value in options.items() for word in (f"--{key}", str(value))]
    return shlex.join(words_of(choice, "dataset")), shlex.join(network)


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


def add_scoring(parser: cli.Parser, *, batch_size: int = 256) -> None:
    """Add the flags of scores and of what computes them."""
    add_settings(parser, ScoreSettings)
    text = "examples per forward pass; does not change the scores"
    parser.add_argument("--batch_size", type=cli.positive_int, default=batch_size, help=text)
    cli.add_device(parser)
    cli.add_overwrite(parser)


def read_scoring(args: argparse.Namespace, score_dir: Path, device: torch.device) -> Scoring:
    """Return the scoring that parsed flags name.

    Raises:
        InputError: A score is unknown or cannot be imported.
    """
    from libscoring.scoring import Batches, Scoring
    from libscoring.table import find_scores

    settings = read_settings(ScoreSettings, args)
    scores = find_scores(settings.scores)
    return Scoring(score_dir, settings, scores, device, Batches(args.batch_size), args.overwrite)


def add_private_models(parser: cli.Parser, *, suffix: str = "*") -> None:
    """Add the flags that say which private models are meant; by default the papers' of CIFAR-100."""
    add_choices(parser, dataset="cifar100", arch="resnet18", private=True)
    add_settings(parser, PrivateChoice, suffix=suffix)


def read_private_models(
    args: argparse.Namespace, config: Config, made_by: str = "train_dp.py"
) -> tuple[list[PrivateModel], str, str]:
    """Return the private models that parsed flags name, and the names of their data set and network on disk.

    Where there is none, `made_by` says what trains them.

    Raises:
        InputError: There is none; the message lists what is there.
    """
    from libdata.datasets import dataset_name

    dataset, arch = dataset_name(args.dataset, args.dataset_name), read_network(args, private=True).name
    choice = read_settings(PrivateChoice, args)
    return find_private_models(config.private_models(dataset), dataset, arch, choice, made_by), dataset, arch
