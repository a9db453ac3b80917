"""Flags of a private training, and of the numbered runs of the per-instance study."""

from __future__ import annotations

import libcli as cli
from libcli.choices import add_choices, read_data, read_network
from libcli.settings import add_settings, read_settings

import argparse
import os
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from libstore.errors import InputError
from libtrain.settings import DPSettings, MeasureSettings, StudySettings

if TYPE_CHECKING:
    from libdata.choice import DataChoice
    from libmodels.networks import Network


class PrivateTraining(NamedTuple):
    """What flags say of a private training, in the order in which `libtrain.private_study.load_study` takes it."""

    choice: DataChoice
    network: Network
    study: StudySettings
    settings: DPSettings


def add_private_training(
    parser: cli.Parser, *, arch: str = "smallcnn", leave_out: Collection[str] = (), **defaults: Any
) -> None:
    """Add the flags, and those of the process; `leave_out` and `defaults` are those of `DPSettings`."""
    add_choices(parser, arch=arch, private=True)
    add_settings(parser, StudySettings)
    add_settings(parser, DPSettings, leave_out=leave_out, **defaults)
    cli.add_save_every(parser)
    text = "go on from the saved state of an interrupted run, if there is one"
    parser.add_argument("--resume", action=argparse.BooleanOptionalAction, default=True, help=text)
    cli.add_device(parser)
    cli.add_overwrite(parser)


def read_private_training(args: cli.Namespace) -> PrivateTraining:
    """Return what parsed flags say; raises InputError if a value is refused or the network cannot be imported."""
    study, settings = read_settings(StudySettings, args), read_settings(DPSettings, args)
    return PrivateTraining(read_data(args), read_network(args, private=True), study, settings)


def numbered_name(text: str) -> str:
    """Return part of a file's name with * for the number of a run or a seed; an argparse type."""
    cli.file_name(text.replace("*", "0"))
    return text


def numbered(text: str, number: int) -> str:
    """Return the path that a text means for a run or seed: * is its number, unless a file of that name is there."""
    return text if os.path.exists(text) else text.replace("*", str(number))


def check_numbers(flag: str, numbers: Sequence[int], names: Mapping[str, str]) -> None:
    """Refuse runs or seeds of one process that are named twice, or whose names are the same.

    Args:
        flag: What names those after the first.
        numbers: All of them.
        names: What their files are called, by flag.

    Raises:
        InputError: A number is there twice; there are several, and a name without a *.
    """
    for place, number in enumerate(numbers):
        if number in numbers[:place]:
            raise InputError(f"{flag} {number}: {number} is there twice")
    for name_flag, name in names.items() if len(numbers) > 1 else ():
        if "*" not in name:
            raise InputError(f"{name_flag} {name}: with {flag} it needs a * for the number, or all have the same files")


def add_run(parser: cli.Parser, *, several: bool = False, **measuring: Any) -> None:
    """Add the flags that say what a run trains, what to measure in it, and under which names.

    The defaults of training are the published settings (arXiv 2307.00310); `measuring` are those of `MeasureSettings`.
    With `several`, one process takes more runs than one.
    """
    add_private_training(
        parser, arch="lenet5", leave_out=("seed",), epsilon=10.0, epochs=40, optimizer="sgd", lr=0.1, lr_drops=()
    )
    add = parser.add_argument
    text = "seed of initial weights, batches, noise and what is random in the network (default: the run's number)"
    add("--seed", type=cli.non_negative_int, help=text)
    add("--run", type=cli.positive_int, default=1, help="number of the run; also its seed unless --seed is given")
    parser.set_defaults(more_runs=[])
    if several:
        text = "numbers of more runs to train and measure after the first (default: none)"
        add("--more_runs", type=cli.positive_int, nargs="+", metavar="RUN", help=text)
    text = "what follows ckpt in the name of the checkpoints' folder, * for the run's number"
    add("--name", type=numbered_name, default="*", help=text)
    text = "what follows res in the name of the result file, * for the run's number (default: as --name)"
    add("--res_name", type=numbered_name, help=text)
    add_settings(parser, MeasureSettings, **measuring)
    parser.remark = _tell_stages


def _tell_stages(args: cli.Namespace) -> None:
    """Say if the checkpoints will be too few for the stages, as far as flags tell without running a user's function."""
    measuring, study = read_settings(MeasureSettings, args), read_settings(StudySettings, args)
    if measuring.checkpoints is not None or ":" in args.dataset:
        return
    from libdata.datasets import dataset_size
    from libstore.index import drawn, read_index

    with suppress(InputError, OSError):  # what is wrong with the data is said by the job
        subset = study.train_subset or study.data_subset
        planned = drawn(study.train_subset).planned or len(read_index(subset, dataset_size(args.dataset, "train", "")))
        total = read_settings(DPSettings, args, seed=0).steps(planned)
        fewer = measuring.fewer_stages(total, measuring.kept_steps(total))
        if fewer:
            cli.warn(fewer)


def parse_runs(parser: cli.Parser, argv: Sequence[str] | None) -> list[cli.Namespace]:
    """Parse, and return the flags of every run, with the seed and the names that follow from its number.

    Raises:
        InputError: Several runs would be the same, or replace each other's files.
    """
    args = parser.parse_args(argv)
    runs, names = [args.run, *args.more_runs], {"name": args.name, "res_name": args.res_name or args.name}
    for flag in ("seed", "checkpoints") if args.more_runs else ():
        value = getattr(args, flag)
        if value is not None:
            raise InputError(f"--{flag} {value}: with --more_runs every run would be the same")
    check_numbers("--more_runs", runs, {f"--{flag}": name for flag, name in names.items()})
    return [_of_run(args, run, names) for run in runs]


def _of_run(args: cli.Namespace, run: int, names: Mapping[str, str]) -> cli.Namespace:
    own = {flag: name.replace("*", str(run)) for flag, name in names.items()}
    return cli.Namespace(**{**vars(args), **own, "run": run, "seed": run if args.seed is None else args.seed})
