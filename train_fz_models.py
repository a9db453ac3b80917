"""Link 1, step 1: train an ensemble on random subsets of a data set, in the Feldman-Zhang layout.

    python train_fz_models.py --dataset mnist --arch smallcnn --subset 2000 --start_run 0 --stop_run 60

Every run trains one network on its own random subset of the examples and keeps which examples it saw and how
it does on all of them (Feldman, Zhang, NeurIPS 2020, arXiv 2008.03703). Without flags it trains the small CNN on MNIST;
calc_curv_fz_models.py without flags scores the papers' CIFAR-100 ensemble, so give both the same --dataset and --arch.

Inputs: the data set under data_dir. Outputs: <fz_model_dir>/<dataset>_<arch>/<ratio>/<run>/aux_arrays.npz and
checkpoints/model.pt, each with a JSON sidecar. Finished runs are skipped, an interrupted one goes on where it
was. Measured: about 1.5 s for a run of the small CNN on 1,400 digits, one CPU thread.
"""

from __future__ import annotations

import libcli as cli

from collections.abc import Sequence

import numpy as np

from libdata.datasets import DATASETS, NORMALIZATIONS, check_same_content, dataset_size, load_dataset
from libmodels import ARCHITECTURES
from libmodels.checkpoints import ModelSpec
from libmodels.devices import resolve_device
from libstore.config import load_config
from libstore.fz import run_dir
from libstore.index import read_index
from libstore.store import read_sidecar
from libtrain.fz_training import FZTraining
from libtrain.training import SGDSettings


def parse(argv: Sequence[str] | None) -> cli.Namespace:
    """Read the command line."""
    parser = cli.Parser(__doc__)
    parser.add_argument("--dataset", choices=DATASETS, default="mnist", help="data set")
    parser.add_argument("--arch", choices=ARCHITECTURES, default="smallcnn", help="architecture")
    cli.add_architecture_options(parser, ARCHITECTURES)
    parser.add_argument("--subset", default="all", help="examples of the study: all, the first N, or an .npy index")
    parser.add_argument(
        "--normalization", choices=NORMALIZATIONS, default="unit", help="pixels in [0,1], or standardised"
    )
    parser.add_argument("--ratio", type=cli.fraction, default=0.7, help="share of the examples each run trains on")
    cli.add_run_range(parser, stop=60)
    parser.add_argument("--epochs", type=cli.positive_int, default=30, help="passes over the subset")
    parser.add_argument("--batch_size", type=cli.positive_int, default=64, help="examples of a step")
    parser.add_argument(
        "--lr", type=cli.positive_float, default=0.1, help="first learning rate; it falls to 0 as a cosine"
    )
    parser.add_argument("--momentum", type=cli.number(float, at_least=0, below=1), default=0.9, help="SGD momentum")
    parser.add_argument("--weight_decay", type=cli.number(float, at_least=0), default=0.0, help="L2 coefficient")
    parser.add_argument("--seed", type=cli.non_negative_int, default=0, help="seed of the whole ensemble")
    parser.add_argument(
        "--save_every", type=cli.number(float, at_least=0), default=60.0, help="seconds between saved states"
    )
    cli.add_device(parser)
    cli.add_overwrite(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Train the runs that are not there yet."""
    args = parse(argv)
    device = resolve_device(args.device, deterministic=args.deterministic)
    config = load_config(args.config)
    shape = {"normalization": args.normalization, "image_size": ARCHITECTURES[args.arch].image_size}
    index = np.sort(read_index(args.subset, dataset_size(args.dataset, "train", config.data_dir)))
    data = load_dataset(args.dataset, "train", config.data_dir, index=index, **shape)
    test = load_dataset(args.dataset, "test", config.data_dir, **shape)
    spec = ModelSpec.for_dataset(args.arch, data, **cli.architecture_options(args, ARCHITECTURES))
    sgd = SGDSettings(args.epochs, args.batch_size, args.lr, args.momentum, args.weight_decay)
    training = FZTraining(data, test, spec, sgd, args.ratio, args.seed, device, args.save_every)

    root = config.fz_model_dir / f"{args.dataset}_{args.arch}"
    replaced = {str(run) for run in range(args.start_run, args.stop_run)} if args.overwrite else set()
    for other in sorted((root / str(args.ratio)).glob("*/aux_arrays.json")):
        if other.parent.name not in replaced:
            check_same_content(data, read_sidecar(other)["settings"].get("data", {}), other.parent)
    epochs = (args.stop_run - args.start_run) * args.epochs
    with cli.stop_requests() as stopping, cli.progress(epochs, f"training {root.name}", "epochs") as bar:
        for run in range(args.start_run, args.stop_run):
            folder, before = run_dir(root, str(args.ratio), run), bar.n

            def show(epochs: int, before: int = before) -> None:
                bar.update(before + epochs - bar.n)

            if stopping():
                raise cli.Stopped(stopping(), f"{root}: stopped before run {run}; run the same command again to go on")
            result = training.train(run, folder, overwrite=args.overwrite, on_epoch=show, stopping=stopping)
            show(args.epochs)
            if result is None:
                print(f"{folder}: finished before, skipped", flush=True)
            else:
                accuracy = ", ".join(f"{group} {values.mean():.4f}" for group, values in result.correctness.items())
                print(f"{folder}: accuracy {accuracy}", flush=True)


if __name__ == "__main__":
    cli.run(main)
