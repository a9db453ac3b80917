"""Print what data and a network are called on disk, and where the data's training subsets are, a line each.

    python scripts/names_on_disk.py --dataset letters.npz --arch my_nets.py:build

For the generators of job lines.
"""

from __future__ import annotations

import libcli as cli
from libcli.choices import add_choices, read_network

from collections.abc import Sequence

from libdata.datasets import dataset_name
from libstore.config import DEFAULT_CONFIG, load_config


def main(argv: Sequence[str] | None = None) -> None:
    """Print the three."""
    parser = cli.Parser(__doc__)
    add_choices(parser)
    args = parser.parse_args(argv)
    dataset, top = dataset_name(args.dataset, args.dataset_name), DEFAULT_CONFIG.parent
    subsets = load_config(args.config).private_models(dataset) / "subsets" / dataset
    print(dataset)
    print(read_network(args).name)
    print(subsets.relative_to(top) if subsets.is_relative_to(top) else subsets)


if __name__ == "__main__":
    cli.run(main)
