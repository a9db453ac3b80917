"""Link 1, step 2: curvature of every example under every model of a Feldman-Zhang-layout ensemble.

    python calc_curv_fz_models.py --dataset mnist --arch smallcnn --ratio 0.7
    python calc_curv_fz_models.py --dataset cifar100 --arch small_inception --ratio all

The estimator is libscores.curvature (arXiv 2402.18726): per-example loss, random probes, divided by h. Released
TensorFlow checkpoints are converted on the way; a model that does not reproduce its own recorded correctness on
99 % of the examples, or not its errors (the order of the data is another then), is refused. Without flags it scores
the papers' models, Feldman and Zhang's for CIFAR-100;
train_fz_models.py without flags trains on MNIST, so give both the same --dataset and --arch.

Inputs: <fz_model_dir>/<dataset>_<arch>/<ratio>/<run>/ (or a released download under its own name, such as
cifar100-inception) and the data set under data_dir. Outputs, per model:
<fz_precomputed_score_dir>/<model>/{curv_scores,trace,true_labels}_<model>_<h>.npy with <model> =
<dataset>_<arch>_<ratio>_<run>; with --scores other columns, <column>_<model>.npy.
Models that are scored already are skipped. Measured on one CPU thread: about 1 s per model for the
small CNN and 2,000 digits; 0.12 s per example for SmallInception.
"""

from __future__ import annotations

import libcli as cli
from libcli.choices import add_choices, add_scoring, read_data, read_network, read_scoring

from collections.abc import Sequence
from pathlib import Path

from libdata.datasets import Dataset, check_same_content, dataset_name, dataset_size, load_dataset
from libstore.config import load_config
from libstore.errors import InputError
from libstore.fz import ensemble_root, list_ratios, read_runs, run_dir
from libstore.index import index_digest
from libstore.scored_ensemble import usable_runs
from libstore.scores import fz_model_name
from libstore.store import read_sidecar


def wanted_runs(root: Path, ratio: str, start: int, stop: int | None) -> list[tuple[str, list[int]]]:
    """List the runs of a ratio, or of all; then a ratio that cannot be read or has none is named and left out.

    Raises:
        InputError: There is no run at all.
    """
    if ratio != "all":
        return [(ratio, usable_runs(root, ratio, start, stop))]
    found = []
    for each in list_ratios(root):
        try:
            found.append((each, usable_runs(root, each, start, stop)))
        except InputError as error:
            cli.warn(f"{error}; left out")
        except OSError as error:
            cli.warn(f"{error.filename}: {error.strerror}; left out")
    if not found:
        raise InputError(f"{root}: no ratio has a finished run from {start} to {stop or 'the last'}")
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Score the models of a range of runs."""
    parser = cli.Parser(__doc__)
    add_choices(parser, dataset="cifar100", arch="small_inception")
    parser.add_argument(
        "--ratio", default="0.7", help="share of the examples each run trained on: the folder's name, or all"
    )
    cli.add_run_range(parser, stop=None)
    cli.add_keep_converted(parser)
    add_scoring(parser)
    args = parser.parse_args(argv)
    from libmodels.devices import resolve_device
    from libmodels.tf_checkpoint import open_run
    from libscoring.scoring import score_model

    device = resolve_device(args.device, deterministic=args.deterministic)
    config = load_config(args.config)
    choice, network = read_data(args), read_network(args)
    dataset = dataset_name(choice.dataset, choice.dataset_name)
    scoring = read_scoring(args, config.fz_score_dir(dataset), device)
    root = ensemble_root(config.fz_models(dataset), dataset, network.name)
    data: Dataset | None = None
    size = dataset_size(choice.dataset, "train", config.data_dir)
    for ratio, runs in wanted_runs(root, args.ratio, args.start_run, args.stop_run):
        for run, arrays in zip(runs, read_runs(root, ratio, runs, size), strict=True):
            name, folder = fz_model_name(dataset, network.name, ratio, run), run_dir(root, ratio, run)
            cache = config.converted_dir / f"{name}.pt"
            model = open_run(folder, dataset, network, cache, keep=args.keep_converted)
            wanted = (model.normalization, index_digest(arrays.examples))
            if data is None or (data.normalization, index_digest(data.index)) != wanted:
                data = load_dataset(
                    choice.dataset, "train", config.data_dir, index=arrays.examples,
                    normalization=model.normalization, image_size=model.image_size, tokens=model.tokens,
                    name_on_disk=choice.dataset_name,
                )  # fmt: skip
            if (folder / "aux_arrays.json").exists():
                kept = read_sidecar(folder / "aux_arrays.npz")["settings"]
                check_same_content(data, kept.get("data", {}), folder)
            recorded = arrays.recorded(data.index)
            new = score_model(scoring, name, model.load, model.identity, data, recorded)
            print(f"{name}: {'scored' if new else 'finished before, skipped'}", flush=True)


if __name__ == "__main__":
    cli.run(main)
