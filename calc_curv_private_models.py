"""Link 2, step 2: curvature of every example under private models.

    python calc_curv_private_models.py --dataset mnist --arch smallcnn

The estimator is libscores.curvature (arXiv 2402.18726): per-example loss, random probes, divided by h. Nothing is
calibrated again: the weights are loaded as they are.

Inputs: <private_model_dir>/<model>/model.pt and aux_arrays.npz, and the data set under data_dir. Outputs, per model:
<private_precomputed_score_dir>/<model>/{curv_scores,trace,true_labels}_<model>_<h>.npy on all training-split examples
of the study, also those the model was not trained on; with --split test on the test split, <model> followed by _test.
Models that are scored already are skipped. Measured: about 1 s per model for the small CNN and 2,000 digits.
"""

from __future__ import annotations

import libcli as cli
from libcli.choices import add_private_models, add_scoring, read_network, read_private_models, read_scoring

from collections.abc import Sequence

from libdata.datasets import check_same_content, load_dataset
from libstore.config import load_config
from libstore.errors import InputError
from libstore.store import file_sha256


def main(argv: Sequence[str] | None = None) -> None:
    """Score the chosen models."""
    parser = cli.Parser(__doc__)
    add_private_models(parser)
    parser.add_argument("--split", choices=("train", "test"), default="train", help="examples to score")
    add_scoring(parser)
    args = parser.parse_args(argv)
    from libmodels.checkpoints import load_model
    from libmodels.devices import resolve_device
    from libscoring.scoring import score_model

    device = resolve_device(args.device, deterministic=args.deterministic)
    config = load_config(args.config)
    models, dataset, arch = read_private_models(args, config)
    scoring, network = read_scoring(args, config.private_score_dir(dataset), device), read_network(args, private=True)
    for private in models:
        checkpoint = private.file()
        model, spec = load_model(checkpoint, network)
        if (spec.dataset, spec.arch) != (dataset, arch):
            raise InputError(f"{checkpoint}: holds {spec.arch} for {spec.dataset}, not {arch} for {dataset}")
        arrays = private.arrays()
        index = arrays.examples if args.split == "train" else arrays.index["test"]
        data = load_dataset(
            args.dataset, args.split, config.data_dir, index=index, normalization=spec.normalization,
            image_size=spec.image_size, tokens=spec.tokens, name_on_disk=args.dataset_name,
        )  # fmt: skip
        check_same_content(data, private.settings["data"], private.folder)
        name = private.name if args.split == "train" else f"{private.name}_test"
        identity = {"sha256": file_sha256(checkpoint), "spec": spec.describe()}
        new = score_model(scoring, name, model, identity, data)
        print(f"{name}: {'scored' if new else 'finished before, skipped'}", flush=True)


if __name__ == "__main__":
    cli.run(main)
