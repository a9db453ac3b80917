"""Link 1, step 1: train an ensemble on random subsets of a data set, in the Feldman-Zhang layout.

    python train_fz_models.py --dataset mnist --arch smallcnn --data_subset 2000 --start_run 0 --stop_run 60

Every run trains one network on its own random subset of the examples and keeps which examples it saw and how
it does on all of them (Feldman, Zhang, NeurIPS 2020, arXiv 2008.03703). Without flags it trains the small CNN on MNIST;
calc_curv_fz_models.py without flags scores the papers' CIFAR-100 ensemble, so give both the same --dataset and --arch.

Inputs: the data set under data_dir. Outputs: <fz_model_dir>/<dataset>_<arch>/<ratio>/<run>/aux_arrays.npz and
checkpoints/model.pt, with --record also trajectory.npz, each with a JSON sidecar. Finished runs are skipped, an
interrupted one goes on where it was. Measured: about 1.5 s for a run of the small CNN on 1,400 digits, one CPU thread.
"""

from __future__ import annotations

import libcli as cli
from libcli.choices import add_choices, read_data, read_network
from libcli.settings import add_settings, read_settings

from collections.abc import Sequence

import numpy as np

from libdata.datasets import dataset_size, load_splits
from libstore.config import load_config
from libstore.errors import InputError
from libstore.fz import run_dir
from libstore.index import check_index_content, read_index
from libtrain.settings import EnsembleSettings, RecordSettings, SGDSettings


def parse(argv: Sequence[str] | None) -> cli.Namespace:
    """Read the command line."""
    parser = cli.Parser(__doc__)
    add_choices(parser)
    add_settings(parser, EnsembleSettings)
    cli.add_run_range(parser, stop=60)
    add_settings(parser, SGDSettings)
    add_settings(parser, RecordSettings)
    text = "runs to train in one step each, for small networks on a GPU (slower on a CPU); the same to rounding"
    parser.add_argument("--together", type=cli.positive_int, default=1, metavar="K", help=text)
    cli.add_save_every(parser)
    cli.add_device(parser)
    cli.add_overwrite(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Train the runs that are not there yet."""
    args = parse(argv)
    from libmodels.checkpoints import ModelSpec
    from libmodels.devices import resolve_device
    from libtrain.fz_training import FZTraining

    choice, network = read_data(args), read_network(args)
    shared, sgd = read_settings(EnsembleSettings, args), read_settings(SGDSettings, args)
    record = read_settings(RecordSettings, args)
    device = resolve_device(args.device, deterministic=args.deterministic)
    config = load_config(args.config)
    index = np.sort(read_index(shared.data_subset, dataset_size(choice.dataset, "train", config.data_dir)))
    data, load_test, size = load_splits(choice, config.data_dir, index, shared.normalization, network.image_size)
    check_index_content(shared.data_subset, data.content_sha256)
    spec = ModelSpec.for_dataset(network, data, size)
    training = FZTraining(
        data, load_test(), spec, sgd, shared.ratio, shared.seed, device, args.save_every, args.together, record
    )

    if args.stop_run <= args.start_run:
        raise InputError(f"--stop_run {args.stop_run}: leaves no run from --start_run {args.start_run} on")
    root, ratio = config.fz_models(data.name) / f"{data.name}_{network.name}", str(shared.ratio)
    replaced = {str(run) for run in range(args.start_run, args.stop_run)} if args.overwrite else set()
    training.check_others(root / ratio, replaced, overwrite=args.overwrite)
    epochs = (args.stop_run - args.start_run) * sgd.epochs
    with cli.stop_requests() as stopping, cli.progress(epochs, f"training {root.name}", "epochs") as bar:
        for first in range(args.start_run, args.stop_run, args.together):
            runs = range(first, min(first + args.together, args.stop_run))
            folders, before = [run_dir(root, ratio, run) for run in runs], bar.n

            def show(epochs: int, before: int = before, several: int = len(runs)) -> None:
                bar.update(before + epochs * several - bar.n)

            if stopping():
                raise cli.Stopped(
                    stopping(), f"{root}: stopped before run {first}; run the same command again to go on"
                )
            how = {"overwrite": args.overwrite, "on_epoch": show, "stopping": stopping}
            if args.together > 1:
                results = training.train_together(runs, folders, **how)
            else:
                results = [training.train(first, folders[0], **how)]
            show(sgd.epochs)
            for folder, result in zip(folders, results, strict=True):
                if result is None:
                    print(f"{folder}: finished before, skipped", flush=True)
                else:
                    accuracy = ", ".join(f"{group} {values.mean():.4f}" for group, values in result.correctness.items())
                    print(f"{folder}: accuracy {accuracy}", flush=True)


if __name__ == "__main__":
    cli.run(main)
