"""Link 1, step 1: train an ensemble on random subsets of a data set, in the Feldman-Zhang layout.

    python train_fz_models.py --dataset mnist --arch smallcnn --subset 2000 --start_run 0 --stop_run 60

Every run trains one network on its own random subset of the examples and keeps which examples it saw and how
it does on all of them (Feldman, Zhang, NeurIPS 2020, arXiv 2008.03703).

Inputs: the data set under data_dir. Outputs: <fz_model_dir>/<dataset>_<arch>/<ratio>/<run>/aux_arrays.npz and
checkpoints/model.pt, each with a JSON sidecar. Finished runs are skipped, an interrupted one goes on where it
was. Measured: about 1.5 s for a run of the small CNN on 1,400 digits, one CPU thread.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import torch

from libdata import cli
from libdata.config import load_config
from libdata.datasets import DATASETS, NORMALIZATIONS, dataset_size, load_dataset
from libdata.errors import InputError
from libdata.fz import RunArrays, run_dir
from libdata.index import read_index
from libdata.store import Output, arrays_bytes, exclusive, provenance
from libmodels import ARCHITECTURES
from libmodels.checkpoints import ModelSpec, model_bytes
from libmodels.devices import resolve_device
from libmodels.training import INIT, SUBSET, SGDSettings, predict, stream_seed, train_sgd


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
    config, device = load_config(args.config), resolve_device(args.device)
    shape = {"normalization": args.normalization, "image_size": ARCHITECTURES[args.arch].image_size}
    index = np.sort(read_index(args.subset, dataset_size(args.dataset, "train")))
    data = load_dataset(args.dataset, "train", config.data_dir, index=index, **shape)
    test = load_dataset(args.dataset, "test", config.data_dir, **shape)
    spec = ModelSpec.for_dataset(args.arch, data, **cli.architecture_options(args, ARCHITECTURES))
    sgd = SGDSettings(args.epochs, args.batch_size, args.lr, args.momentum, args.weight_decay)
    n_train = round(args.ratio * len(data))
    if not 0 < n_train < len(data):
        raise InputError(f"--ratio {args.ratio} of {len(data)} examples leaves nothing to train on or nothing removed")

    root = config.fz_model_dir / f"{args.dataset}_{args.arch}"
    images, labels = {}, {}
    for name, part in (("data", data), ("test", test)):
        images[name], labels[name] = part.images.to(device), part.labels.to(device)
    bar = cli.progress((args.stop_run - args.start_run) * args.epochs, f"training {root.name}", "epochs")
    for run in range(args.start_run, args.stop_run):
        folder = run_dir(root, str(args.ratio), run)
        settings = {"seed": args.seed, "run": run, "ratio": args.ratio, "sgd": vars(sgd)}
        settings |= {"data": data.identity(), "model": spec.describe()}
        with exclusive(folder), exclusive(folder / "checkpoints"):
            weights = Output(folder / "checkpoints" / "model.pt", settings)
            arrays = Output(folder / "aux_arrays.npz", settings)
            state = Output(folder / "checkpoints" / "state.pt", settings)
            if args.overwrite:
                state.remove()
            if weights.finished(overwrite=args.overwrite) and arrays.finished(overwrite=args.overwrite):
                print(f"{folder}: finished before, skipped", flush=True)
                state.remove()
                bar.update(args.epochs)
                continue
            started = time.monotonic()
            chosen = np.random.default_rng(stream_seed(args.seed, run, SUBSET)).permutation(len(data))
            rows = {"train": np.sort(chosen[:n_train]), "removed": np.sort(chosen[n_train:])}
            torch.manual_seed(stream_seed(args.seed, run, INIT))
            model = spec.build().to(device)
            subset = torch.from_numpy(rows["train"]).to(device)
            before = bar.n
            train_sgd(
                model, images["data"][subset], labels["data"][subset], sgd, seed=args.seed, run=run,
                state=state, save_every=args.save_every, on_epoch=lambda n, b=before: bar.update(b + n - bar.n),
            )  # fmt: skip
            correct, prob = predict(model, images["data"], labels["data"])
            test_correct, test_prob = predict(model, images["test"], labels["test"])
            result = RunArrays(
                index={group: data.index[r] for group, r in rows.items()} | {"test": test.index},
                correctness={group: correct[r] for group, r in rows.items()} | {"test": test_correct},
                prob={group: prob[r] for group, r in rows.items()} | {"test": test_prob},
                subsample_idx=data.index[rows["train"]],
            )
            made_by = provenance(device=str(device), seconds=round(time.monotonic() - started, 3))
            weights.save(model_bytes(model, spec), made_by)
            arrays.save(arrays_bytes(**result.to_dict()), made_by)
            state.remove()
            accuracy = {group: values.mean() for group, values in result.correctness.items()}
            print(f"{folder}: accuracy " + ", ".join(f"{group} {a:.4f}" for group, a in accuracy.items()), flush=True)
    bar.close()


if __name__ == "__main__":
    cli.run(main)
