"""ILSVRC 2012 as indexed TFRecords, in the order of Feldman and Zhang's scores (arXiv 2008.03703).

    python build_fz_imagenet/build_imagenet.py --workers 8

Inputs: <imagenet_dir>/train/<WordNet id>/*.JPEG, <imagenet_dir>/val/<WordNet id>/*.JPEG and the released
imagenet_index.npz (config key imagenet_index). Outputs: <tfrecord_dir>/train-00000-of-01024 ... ,
validation-00000-of-00128 ... and a manifest of counts and checksums for each split. Finished files are kept; an
interrupted build goes on where it was. `--verify` reads everything back. About 140 GB; the time is that of
decoding each image once (2 ms and one thread) and of the disk.
"""

from __future__ import annotations

import libcli as cli

from collections.abc import Sequence

from libdata.build_tfrecords import build, scan, verify
from libdata.imagenet import read_imagenet_index
from libdata.indexed_tfrecords import SPLITS, TRAIN_FILES
from libstore.config import load_config
from libstore.store import exclusive

FOLDERS = {"train": "train", "validation": "val"}


def main(argv: Sequence[str] | None = None) -> None:
    """Build the splits, or check what was built."""
    parser = cli.Parser(__doc__)
    parser.add_argument("--splits", nargs="+", choices=SPLITS, default=list(SPLITS), help="which splits")
    parser.add_argument("--train_shards", type=cli.positive_int, default=TRAIN_FILES, help="number of training files")
    parser.add_argument("--validation_shards", type=cli.positive_int, default=128, help="number of validation files")
    cli.add_workers(parser)
    parser.add_argument("--verify", action="store_true", help="read the built files back and build nothing")
    cli.add_overwrite(parser)
    args = parser.parse_args(argv)

    config = load_config(args.config)
    for split in args.splits:
        order = read_imagenet_index(config.imagenet_index, split)
        with cli.progress(len(order), f"{'checking' if args.verify else 'building'} {split}", "images") as bar:
            if args.verify:
                count = verify(config.tfrecord_dir, split, order, workers=args.workers, bar=bar)
                print(f"{config.tfrecord_dir}: {split}, {count} examples read back, all as in the manifest", flush=True)
                continue
            sources = scan(config.imagenet_dir / FOLDERS[split], order)
            with exclusive(config.tfrecord_dir):
                manifest = build(
                    sources, config.tfrecord_dir, split, getattr(args, f"{split}_shards"),
                    {"imagenet_index_sha256": order.sha256}, workers=args.workers, overwrite=args.overwrite, bar=bar,
                )  # fmt: skip
            print(f"{manifest}: {len(sources)} examples", flush=True)


if __name__ == "__main__":
    cli.run(main)
