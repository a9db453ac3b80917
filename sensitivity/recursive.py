"""What fewer trainings would have said of a recursive removal, and fewer checkpoints of each of its rounds.

    python sensitivity/recursive.py compo_res/compo_res_all_totals.csv compo_res/compo_res_recursive_30_*_totals.csv

From the costs of an earlier round alone: how many of the points removed up to a later one are guessed right, and how
far its costs are off, also by a straight line through two earlier rounds. From every third checkpoint of a round's cost
curves, interpolated: how many of the points it removes next are the same, and the error of the totals.

Inputs: the totals of the rounds in their order, and the step costs beside them (run_recursive.sh). Output: two tables,
and with --output the first as CSV and the second beside it as <output>_checkpoints.csv, with JSON sidecars. Takes a
second.
"""

from __future__ import annotations

import libcli as cli

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from libscores import cost_curves, ranking, renyi
from libscores.statistics import spearman
from libstore import store
from libstore.errors import InputError
from libstore.sensitivity_results import read_step_costs, read_totals, tell_constant


def parse(argv: Sequence[str] | None) -> cli.Namespace:
    """Read the command line."""
    parser = cli.Parser(__doc__)
    parser.add_argument("totals", type=Path, nargs="+", help="totals of round 0, 1, ..., two or more")
    parser.add_argument("--cost", default="epsilon realised mean", help="column that the rounds went by")
    parser.add_argument("--every", type=cli.number(int, at_least=2), default=3, help="checkpoints: one in so many")
    parser.add_argument("--output", type=Path, help="CSV to write the first table to; none by default")
    cli.add_overwrite(parser)
    return parser.parse_args(argv)


def read_rounds(paths: Sequence[Path], cost: str) -> tuple[list[ranking.Round], int]:
    """Return the rounds and how many points went before each; refuse what is no recursive removal."""
    if len(paths) < 2:
        raise InputError(f"{paths[0]}: needs the totals of two rounds or more")
    rounds = [ranking.Round(*read_totals(path, cost)) for path in paths]
    gone = {rounds[k - 1].points.size - rounds[k].points.size for k in range(1, len(rounds))}
    for path, before, after in zip(paths[1:], rounds[:-1], rounds[1:], strict=True):
        added = np.setdiff1d(after.points, before.points)
        if added.size:
            raise InputError(f"{path}: point {added[0]} is not in the round before")
        if len(gone) > 1 or after.points.size == before.points.size or after.points.size < 2:
            sizes = ", ".join(str(one.points.size) for one in rounds)
            raise InputError(f"{path}: the rounds have {sizes} points; each must have as many fewer, and the last 2")
    return rounds, gone.pop()


def fewer_checkpoints(paths: Sequence[Path], removed: int, every: int) -> list[dict[str, float | str]]:
    """Return for each round and method what every so many checkpoints of its cost curves say."""
    rows: list[dict[str, float | str]] = []
    for number, path in enumerate(paths):
        file = path.with_name(path.name.replace("_totals.csv", ".csv"))
        points, steps, curves = read_step_costs(file)
        weights = renyi.interpolation_weights(steps, int(steps[-1]))
        kept = np.arange(0, steps.size, every)
        if kept.size < 2:
            raise InputError(f"{file}: {steps.size} steps are too few for --every {every}")
        total = weights @ curves
        cheapest = ranking.select_points(points, total, removed, "cheapest")
        for method in (cost_curves.linear, cost_curves.pchip):
            guess = weights @ method(steps, curves[kept], kept)
            same = np.isin(ranking.select_points(points, guess, removed, "cheapest"), cheapest).mean()
            error = float(np.median(np.abs(ranking.cost_ratios(total, guess) - 1)))
            name = method.__name__
            rows.append({"round": number, "method": name, "checkpoints": kept.size, "overlap": float(same),
                         "spearman": spearman(total, guess), "median_error": error})  # fmt: skip
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    """Compare, print, save."""
    args = parse(argv)
    rounds, removed = read_rounds(args.totals, args.cost)
    files = [*args.totals, *(path.with_name(path.name.replace("_totals.csv", ".csv")) for path in args.totals)]
    tables = [
        pd.DataFrame(ranking.saved_rounds(rounds, removed)),
        pd.DataFrame(fewer_checkpoints(args.totals, removed, args.every)),
    ]
    tell_constant(zip(args.totals, (one.costs for one in rounds), strict=True))
    print(f"{len(rounds) - 1} rounds, {removed} of {rounds[0].points.size} points each, by {args.cost}")
    for table in tables:
        print(table.to_string(index=False, float_format="{:.4g}".format))
    if args.output:
        settings = {"cost": args.cost, "every": args.every, "input_sha256": store.input_digests(files)}
        with store.exclusive(args.output.parent):
            for table, end in zip(tables, ("", "_checkpoints"), strict=True):
                path = args.output.with_name(f"{args.output.stem}{end}.csv")
                output = store.Output(path, settings, inputs=("input_sha256",))
                if not output.finished(overwrite=args.overwrite):
                    output.save(table.to_csv(index=False).encode(), store.provenance())


if __name__ == "__main__":
    cli.run(main)
