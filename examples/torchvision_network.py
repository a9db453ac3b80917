"""A network of torchvision's on CIFAR-10, or on any data set: nothing but two flags.

    python examples/torchvision_network.py [DATA] [--arch torchvision.models:resnet18]

The same as: python train_fz_models.py --dataset cifar10 --arch torchvision.models:resnet18, and so on.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from libdata.datasets import dataset_name


def main(argv: Sequence[str] | None = None) -> Path:
    """Run the study and return the path of the figure."""
    import common

    parser = common.parser(__doc__, runs=10)
    parser.add_argument("data", nargs="?", default="cifar10", help="data set (default cifar10)")
    parser.add_argument("--arch", default="torchvision.models:resnet18", help="import path of the network")
    parser.add_argument("--epochs", default="20", help="passes of each over its images (default 20)")
    parser.add_argument(
        "--data_subset", "--subset", default="2000", help="images of the study (default: the first 2,000)"
    )
    args = parser.parse_args(argv)
    training = ("--stop_run", args.runs, "--epochs", args.epochs, "--data_subset", args.data_subset)
    name = f"{dataset_name(args.data)}_{args.arch.rpartition(':')[2]}"
    return common.study(args.out, args.data, args.arch, *training, name=name)


if __name__ == "__main__":
    print(main())
