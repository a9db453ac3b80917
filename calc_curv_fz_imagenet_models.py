"""Link 1, ImageNet: curvature of every example under Feldman and Zhang's ResNet-50 models.

    python calc_curv_fz_imagenet_models.py --start_idx 0 --stop_idx 3
    python calc_curv_fz_imagenet_models.py --start_idx 0 --stop_idx 0 --shards 0-255

`--stop_idx` is the last model, as in the published script. Several jobs may share a model by `--shards`; the one
that scores the last file merges. An interrupted job goes on at the TFRecord file where it was. Models that are
not on disk are named and left out.

Inputs: <fz_model_dir>/imagenet-resnet50/<ratio>/<run>/ as downloaded, imagenet_index.npz, and the images: the
TFRecords of build_fz_imagenet/build_imagenet.py under tfrecord_dir, or else ILSVRC's train/ under imagenet_dir.
Outputs, per model:
<fz_precomputed_score_dir>/<model>/{curv_scores,trace,true_labels}_<model>_<h>.npy with <model> =
imagenet_resnet50_<ratio>_<run>, by Feldman and Zhang's index. A model costs 1.28 M images x (2 + n_probes) forward
passes and 1 + n_probes backward passes; measured: 2.1 s for an image with ten probes on one CPU thread.
"""

from __future__ import annotations

import libcli as cli
from libcli.choices import add_scoring, read_scoring

import argparse
import re
from collections.abc import Sequence

from libdata.indexed_tfrecords import TRAIN_FILES, list_shards
from libmodels.networks import built_in
from libstore.config import load_config
from libstore.errors import InputError
from libstore.fz import ensemble_root, read_run, run_dir
from libstore.scores import fz_model_name

ARCH = "resnet50"


def shard_range(text: str) -> tuple[int, int]:
    """Read "3" or "0-255": the first and the last file."""
    match = re.fullmatch(r"(\d+)(?:-(\d+))?", text)
    if not match or int(match[2] or match[1]) < int(match[1]):
        raise argparse.ArgumentTypeError(f"{text!r} is not a file's number or a range such as 0-255")
    return int(match[1]), int(match[2] or match[1])


def main(argv: Sequence[str] | None = None) -> None:
    """Score the models of a range of runs."""
    parser = cli.Parser(__doc__)
    parser.add_argument("--start_idx", type=cli.non_negative_int, default=0, help="first model")
    text = "last model, included, unlike --stop_run of the other scripts"
    parser.add_argument("--stop_idx", type=cli.non_negative_int, default=10, help=text)
    parser.add_argument("--ratio", default="0.7", help="share of the examples each run trained on: the folder's name")
    parser.add_argument(
        "--shards", type=shard_range, default=None, metavar="A-B", help="TFRecord files to score, from 0 (default: all)"
    )
    text = "where the images are read: TFRecords, ILSVRC's folders, or TFRecords where there are any"
    parser.add_argument("--images", choices=("auto", "tfrecords", "folders"), default="auto", help=text)
    cli.add_workers(parser)
    cli.add_keep_converted(parser)
    add_scoring(parser, batch_size=32)
    args = parser.parse_args(argv)
    from libdata.build_tfrecords import folder_shards
    from libdata.imagenet import Shard, read_imagenet_index
    from libmodels.devices import resolve_device
    from libmodels.tf_checkpoint import open_run
    from libscoring.shard_scoring import score_shards

    if args.stop_idx < args.start_idx:
        raise InputError(f"--stop_idx {args.stop_idx} is before --start_idx {args.start_idx}")

    device = resolve_device(args.device, deterministic=args.deterministic)
    config = load_config(args.config)
    order = read_imagenet_index(config.imagenet_index)
    records = list_shards(config.tfrecord_dir, "train", required=args.images == "tfrecords")
    if args.images == "folders" or not records:
        print(f"images from {config.imagenet_dir / 'train'}", flush=True)
        files: Sequence[Shard] = folder_shards(config.imagenet_dir / "train", order, min(TRAIN_FILES, len(order)))
    else:
        files = records
    first, last = args.shards or (0, len(files) - 1)
    if last >= len(files):
        raise InputError(f"--shards {first}-{last}: there are {len(files)} files, 0-{len(files) - 1}")
    root, network = ensemble_root(config.fz_models("imagenet"), "imagenet", ARCH), built_in(ARCH)
    scoring = read_scoring(args, config.fz_score_dir("imagenet"), device)
    found = False
    for run in range(args.start_idx, args.stop_idx + 1):
        name, folder = fz_model_name("imagenet", ARCH, args.ratio, run), run_dir(root, args.ratio, run)
        if not folder.is_dir():
            print(f"{name}: {folder} is not there, left out", flush=True)
            continue
        found = True
        recorded = read_run(folder, len(order)).recorded(order.index)
        cache = config.converted_dir / f"{name}.pt"
        model = open_run(folder, "imagenet", network, cache, keep=args.keep_converted)
        selected = range(first, last + 1)
        done = score_shards(scoring, name, model.load, model.identity, files, selected, order, recorded, args.workers)
        print(f"{name}: {done}", flush=True)
    if not found:
        raise InputError(f"{root / args.ratio}: no model from {args.start_idx} to {args.stop_idx}")


if __name__ == "__main__":
    cli.run(main)
