"""Your own images: a folder with train/<class>/*.jpg and test/<class>/*.jpg (or val/).

    python examples/own_images.py FOLDER [--runs 20]

Trains the small CNN on random 70 % of the images, once a run, scores every image under every network, and draws
memorization against curvature. Results go to results/examples.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def main(argv: Sequence[str] | None = None) -> Path:
    """Run the study and return the path of the figure."""
    import common

    parser = common.parser(__doc__)
    parser.add_argument("folder", type=Path, help="folder of class folders")
    parser.add_argument("--epochs", default="20", help="passes of each over its images (default 20)")
    parser.add_argument("--image_size", default="32", help="height and width that images are resized to (default 32)")
    args = parser.parse_args(argv)
    training = ("--stop_run", args.runs, "--epochs", args.epochs, "--image_size", args.image_size)
    name = f"{args.folder.resolve().name}_smallcnn"
    return common.study(args.out, str(args.folder), "smallcnn", *training, name=name)


if __name__ == "__main__":
    print(main())
