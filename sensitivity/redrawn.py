r"""Which of initial weights, batches and noise decides who is cheap: runs beside one another, and with one redrawn.

    python sensitivity/redrawn.py res/res1.csv res/res2.csv res/res3.csv \
        --redrawn init=res/res_init.csv order=res/res_order.csv noise=res/res_noise.csv

The first run is compared with itself but for one of its seeds (compute_sensitivity.py --init_seed, --order_seed,
--noise_seed); runs of other seeds, where everything is drawn anew, are the yardstick. Costs are realised epsilons, by
privacy loss distributions where they give less than Rényi divergences; one-sided: data with the point || without.

Inputs: result files of one experiment. Output: a table, and with --output as CSV with a JSON sidecar: `redrawn`
(nothing, everything, or the seed), `statistic`, `value`, `low`, `high`. 95 % intervals are over runs for nothing and
everything, over points for one redrawn seed, which one pair of runs cannot speak for. Measured: 1,000 points, 6 runs in
20 s.
"""

from __future__ import annotations

import libcli as cli
from libcli.settings import add_settings, read_settings

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from libscores import ranking
from libscores.few_runs import median_over_runs_and_points
from libscores.statistics import Estimate, median_interval
from libstore import store
from libstore.errors import InputError
from libstore.instance_tables import AccountSettings, account_runs
from libstore.sensitivity_results import read_results, tell_constant


def parse(argv: Sequence[str] | None) -> cli.Namespace:
    """Read the command line."""
    parser = cli.Parser(__doc__)
    parser.add_argument("files", nargs="+", type=Path, help="result files, the run that the others are beside first")
    parser.add_argument(
        "--redrawn", nargs="+", default=[], metavar="SEED=FILE",
        help="result files of the first run with one seed of its own; none by default",
    )  # fmt: skip
    add_settings(parser, AccountSettings, leave_out=("alpha", "convention", "fractional_orders", "measured_only"))
    parser.add_argument("--output", type=Path, help="CSV to write the table to; none by default")
    cli.add_overwrite(parser)
    return parser.parse_args(argv)


def compare(
    epsilons: np.ndarray, accuracy: np.ndarray, redrawn: dict[str, tuple[np.ndarray, float]]
) -> list[tuple[str, str, Estimate]]:
    """Return the rows of the table.

    Args:
        epsilons: Of each run and point, the first run first, shape (R, P).
        accuracy: Test accuracy of each run, shape (R,).
        redrawn: By seed, the epsilons of the first run with that seed redrawn, shape (P,), and its test accuracy.
    """
    (mean,) = ranking.over_runs(lambda a, _: [float(a)], accuracy, accuracy, paired=True, bounds=[(0.0, 1.0)])
    runs = Estimate(float(len(epsilons)), np.nan, np.nan)
    rows = [("nothing", "runs", runs), ("nothing", "test accuracy", mean)]
    rows.append(("nothing", "median epsilon", median_over_runs_and_points(epsilons)))
    if len(epsilons) > 1:
        agreement = ranking.single_run_agreement(epsilons, epsilons, paired=True)
        rows += [("everything", name, agreement[f"{name}_other_seeds"]) for name in ranking.RANK_METRICS]
    for seed, (other, reached) in redrawn.items():
        rows += [(seed, name, one) for name, one in ranking.pair_interval(epsilons[0], other).items()]
        change = other - epsilons[0]
        for name, values in (("change of epsilon", change), ("absolute change of epsilon", np.abs(change))):
            rows.append((seed, f"median {name}", median_interval(values)))
        rows.append((seed, "test accuracy", Estimate(reached, np.nan, np.nan)))
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    """Compare, print, save."""
    args = parse(argv)
    named = [word.partition("=") for word in args.redrawn]
    for seed, sign, file in named:
        if not (seed and sign and file):
            raise InputError(f"--redrawn {seed}{sign}{file}: not of the form SEED=FILE")
    others = [Path(file) for _, _, file in named]
    how = read_settings(AccountSettings, args)
    results = read_results([*args.files, *others], how.distance_unit)
    if len(results.runs) != len(args.files) + len(others):
        raise InputError(f"{args.files[0]}: a file holds several runs; give one run a file")
    settings = how.as_dict() | {"redrawn": [seed for seed, _, _ in named]}
    settings["input_sha256"] = store.input_digests([*args.files, *others])
    output = store.Output(args.output, settings, inputs=("input_sha256", "redrawn")) if args.output else None
    if output and output.finished(overwrite=args.overwrite):
        print(f"{output.path}: already made from these files")
        return
    epsilons, accuracy = account_runs(results, how)[1], results.accuracy[:, -1]
    runs = len(args.files)
    redrawn = {seed: (epsilons[runs + i], float(accuracy[runs + i])) for i, (seed, _, _) in enumerate(named)}
    rows = compare(epsilons[:runs], accuracy[:runs], redrawn)
    parts = [(redrawn, name, one.value, one.low, one.high) for redrawn, name, one in rows]
    table = pd.DataFrame(parts, columns=["redrawn", "statistic", "value", "low", "high"])
    tell_constant(zip(results.runs, epsilons, strict=True))
    print(f"{runs} runs, {results.points.size} points; one-sided: with the point || without")
    for seed, name, one in rows:
        print(f"{seed:12s} {name:32s} {one}")
    if output:
        with store.exclusive(output.path.parent):
            output.save(table.to_csv(index=False).encode(), store.provenance())


if __name__ == "__main__":
    cli.run(main)
