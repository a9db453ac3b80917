"""Draw folds of measured points, to be left out of the training a fold at a time.

    python sensitivity/folds.py sensitivity/res/res1.csv --folds 2 --fold_size 30

Inputs: a result file of sensitivity/compute_sensitivity.py. Outputs, each with a JSON sidecar: <compo_res beside the
file's directory>/fold_<k>.txt, points for --remove_points; no point is in two of them. Takes a second.
"""

from __future__ import annotations

import libcli as cli

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from libstore import store
from libstore.errors import InputError
from libstore.sensitivity_results import read_results


def parse(argv: Sequence[str] | None) -> cli.Namespace:
    """Read the command line."""
    parser = cli.Parser(__doc__)
    parser.add_argument("file", type=Path, help="result file whose points to draw from")
    parser.add_argument("--folds", type=cli.positive_int, default=2, help="number of folds")
    parser.add_argument("--fold_size", type=cli.positive_int, default=30, help="points of a fold")
    parser.add_argument("--seed", type=cli.non_negative_int, default=0, help="seed of the draw")
    cli.add_overwrite(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Draw and save."""
    args = parse(argv)
    points = read_results([args.file]).points
    needed = args.folds * args.fold_size
    if needed > points.size:
        wanted = f"--folds {args.folds} --fold_size {args.fold_size}"
        raise InputError(f"{args.file}: {wanted} need {needed} points, it has {points.size}")
    # One order of all points: more folds of the same size leave the first ones as they are.
    drawn = np.random.default_rng(args.seed).permutation(points)[:needed].reshape(args.folds, -1)
    folder = args.file.resolve().parent.parent / "compo_res"
    with store.exclusive(folder):
        for number, fold in enumerate(np.sort(drawn), start=1):
            settings = {"fold": number, "fold_size": args.fold_size, "seed": args.seed, "points": points.tolist()}
            output = store.Output(folder / f"fold_{number}.txt", settings)
            if not output.finished(overwrite=args.overwrite):
                output.save(" ".join(map(str, fold.tolist())).encode() + b"\n", store.provenance(file=args.file.name))
            print(output.path)


if __name__ == "__main__":
    cli.run(main)
