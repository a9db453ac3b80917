"""Link 1, step 2: curvature of every example under every model of a Feldman-Zhang-layout ensemble.

    python calc_curv_fz_models.py --dataset mnist --arch smallcnn --ratio 0.7

The estimator is libscores.curvature (arXiv 2402.18726): per-example loss, random probes, divided by h.

Inputs: <fz_model_dir>/<dataset>_<arch>/<ratio>/<run>/ and the data set under data_dir. Outputs, per model:
<score_dir>/<model>/{curv_scores,trace,true_labels}_<model>_<h>.npy with <model> = <dataset>_<arch>_<ratio>_<run>.
Models that are scored already are skipped. Measured: about 1 s per model for the small CNN and 2,000 digits.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from libdata import cli
from libdata.config import load_config
from libdata.datasets import DATASETS, Dataset, load_dataset
from libdata.errors import InputError
from libdata.fz import list_runs, read_run, run_dir
from libdata.scores import fz_model_name
from libdata.store import file_sha256
from libmodels import ARCHITECTURES
from libmodels.checkpoints import load_model
from libmodels.devices import resolve_device
from libmodels.scoring import add_scoring_options, score_model


def main(argv: Sequence[str] | None = None) -> None:
    """Score the models of a range of runs."""
    parser = cli.Parser(__doc__)
    parser.add_argument("--dataset", choices=DATASETS, default="cifar100", help="data set")
    parser.add_argument("--arch", choices=ARCHITECTURES, default="smallcnn", help="architecture")
    parser.add_argument("--ratio", default="0.7", help="share of the examples each run trained on: the folder's name")
    cli.add_run_range(parser, stop=None)
    add_scoring_options(parser)
    args = parser.parse_args(argv)

    config, device = load_config(args.config), resolve_device(args.device)
    root = config.fz_model_dir / f"{args.dataset}_{args.arch}"
    data: Dataset | None = None
    for run in list_runs(root, args.ratio, args.start_run, args.stop_run):
        folder = run_dir(root, args.ratio, run)
        examples = read_run(folder).examples
        checkpoint = folder / "checkpoints" / "model.pt"
        model, spec = load_model(checkpoint)
        if spec.dataset != args.dataset:
            raise InputError(f"{checkpoint}: trained on {spec.dataset!r}, not on {args.dataset!r}")
        if data is None or data.normalization != spec.normalization or not np.array_equal(data.index, examples):
            data = load_dataset(
                spec.dataset, "train", config.data_dir,
                index=examples, normalization=spec.normalization, image_size=spec.image_size,
            )  # fmt: skip
        name = fz_model_name(args.dataset, args.arch, args.ratio, run)
        identity = {"sha256": file_sha256(checkpoint), "spec": spec.describe()}
        new = score_model(config.score_dir, name, model, identity, data, args, device)
        print(f"{name}: {'scored' if new else 'finished before, skipped'}", flush=True)


if __name__ == "__main__":
    cli.run(main)
