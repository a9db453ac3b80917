"""Per-instance privacy: what the presence of each point costs DP-SGD, from the norms of its gradient.

    python renyi_per_instance_sum_compo.py sensitivity/res/res1.csv sensitivity/res/res2.csv

What each run spent (individual accounting: Feldman, Zrnic 2021, arXiv 2008.11193), by Rényi divergences and by privacy
loss distributions, the data-independent cost, and the composition in expectation over runs (after Thudi et al., USENIX
Security 2024, arXiv 2307.00310), which is the largest of R runs and grows with R. All runs of one experiment go in
together. They bound D(with the point || without); --without takes runs that left points out (run_folds.sh) and adds
D(without || with) and the larger of both for these points. Other points stay one-sided, and are marked so.

Inputs: result files of sensitivity/compute_sensitivity.py, or the published ones. Outputs, each with a JSON sidecar:
<output_dir>/<name>.csv, `point,step,Privacy cost`; <name>_totals.csv, a row per point; <name>_runs.csv, the median
largest of r runs, r = 1...R, with 95 % intervals over runs and points. Measured: 410,000 rows (1,000 points, 41 steps,
10 runs) in 15 s on one CPU core, and 5 ms more for each run and point by loss distributions.
"""

from __future__ import annotations

import libcli as cli

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from libscores import renyi
from libscores.few_runs import growth_with_runs
from libscores.realised_pld import LEAST_DELTA, realised_pld_epsilon
from libstore import store
from libstore.errors import InputError
from libstore.left_out import check_trained_on, read_left_out
from libstore.sensitivity_results import (
    DISTANCE_UNITS,
    LARGEST,
    STEP_COST,
    SensitivityResults,
    read_results,
    table_bytes,
)


def parse(argv: Sequence[str] | None) -> cli.Namespace:
    """Read the command line."""
    parser = cli.Parser(__doc__)
    parser.add_argument("files", nargs="+", type=Path, help="result files, one or more runs in each")
    parser.add_argument("--alpha", type=cli.number(float, at_least=2), default=8.0, help="Rényi order")
    parser.add_argument("--delta", type=cli.fraction, default=1e-5, help="delta of the epsilon columns")
    parser.add_argument(
        "--convention", choices=("derived", "published"), default="derived", help="how steps are composed"
    )
    parser.add_argument(
        "--distance_unit", choices=DISTANCE_UNITS, default="batch_mean",
        help="unit of `distance (sum)`: norm / batch size, as it is saved, or the norm, as one published reader has it",
    )  # fmt: skip
    parser.add_argument(
        "--fractional_orders", choices=("interpolated", "rounded_up"), default="interpolated",
        help="divergence at the fractional orders the derived composition meets",
    )  # fmt: skip
    parser.add_argument(
        "--without", type=Path, nargs="+", default=[], metavar="FILE",
        help="result files of points left out of the training (run_folds.sh); none by default",
    )  # fmt: skip
    parser.add_argument(
        "--loss_distributions", action=argparse.BooleanOptionalAction, default=True,
        help="realised epsilon by privacy loss distributions, too",
    )  # fmt: skip
    parser.add_argument("--measured_only", action="store_true", help="total over measured steps, not interpolated")
    parser.add_argument("--total_steps", type=cli.positive_int, help="steps of a run; by default what the files say")
    parser.add_argument("--output_dir", type=Path, help="compo_res beside the first file's directory by default")
    parser.add_argument("--name", help="name of the outputs; by default compo_<file>, compo_res_all for several")
    cli.add_overwrite(parser)
    return parser.parse_args(argv)


Columns = dict[str, np.ndarray]


def main(argv: Sequence[str] | None = None) -> None:
    """Read the result files, do the accounting, save costs and totals."""
    args = parse(argv)
    started = time.monotonic()
    if args.delta < LEAST_DELTA and args.loss_distributions:
        raise InputError(f"--delta {args.delta:g}: below {LEAST_DELTA:g} add --no-loss_distributions")
    check_trained_on(args.files, expected=True)
    results = read_results(args.files, args.distance_unit, total_steps=args.total_steps)
    folds = list(read_left_out(args.without, results, args.distance_unit, args.total_steps))
    name = args.name or ("compo_res_all" if len(args.files) > 1 else f"compo_{args.files[0].stem}")
    directory = args.output_dir or args.files[0].resolve().parent.parent / "compo_res"
    flags = (
        "alpha", "delta", "convention", "distance_unit", "fractional_orders", "measured_only", "loss_distributions",
    )  # fmt: skip
    settings = {
        **{flag: getattr(args, flag) for flag in flags},
        "input_sha256": store.input_digests([*args.files, *args.without]),
        "files_without": len(args.without),
        "runs": len(results.runs),
        "measured_steps": results.steps.size,
        "total_steps": results.total_steps,
        "sample_rate": results.sample_rate,
        "noise_multiplier": results.noise_multiplier,
        "estimate": "expectations are over the runs at hand"
        + ("" if args.measured_only else "; costs between measured steps are interpolated"),
    }
    with store.exclusive(directory):
        paths = [directory / f"{name}{part}.csv" for part in ("", "_totals", "_runs")]
        inputs = ("input_sha256", "files_without", "runs", "measured_steps")
        outputs = [store.Output(path, settings, renyi.FORMAT, inputs) for path in paths]
        if all([output.finished(overwrite=args.overwrite) for output in outputs]):
            print(f"{outputs[1].path}: already made with these settings")
            return
        weights = np.ones(results.steps.size)
        if not args.measured_only:
            weights = renyi.interpolation_weights(results.steps, results.total_steps)
        tables = [*account(results, weights, args), growth(results, weights, args)]
        tables[1] |= other_direction(results.points, folds, weights, args)
        if folds:
            for kind in ("realised mean", "largest of R runs"):
                both = tables[1][f"epsilon {kind}"], tables[1][f"epsilon {kind}, without || with"]
                tables[1][f"epsilon {kind}, larger"] = np.fmax(*both)
        made_by = store.provenance(seconds=round(time.monotonic() - started, 3), files=[f.name for f in args.files])
        for output, columns in zip(outputs, tables, strict=True):
            output.save(table_bytes(columns), made_by)
    measured = f"{results.steps.size} of {results.total_steps} steps measured"
    print(f"{results.points.size} points, {len(results.runs)} runs, {measured}")
    two = sum(fold.points.size for fold in folds)
    print(f"D(with || without) of all points; both directions of {two}, the others are one-sided")
    print(f"costs of steps in {outputs[0].path}, totals in {outputs[1].path}")


def account(results: SensitivityResults, weights: np.ndarray, args: cli.Namespace) -> list[Columns]:
    """Return the table of step costs and the columns of totals that need runs with the points only."""
    mechanism = (results.sample_rate, results.noise_multiplier)
    found = renyi.account(
        results.sensitivity, results.steps, results.total_steps, *mechanism, args.alpha, args.delta, args.convention,
        not args.measured_only, args.fractional_orders,
    )  # fmt: skip
    points, steps = results.points, results.steps
    costs = {
        "point": np.repeat(points, steps.size),
        "step": np.tile(steps, points.size),
        STEP_COST: found.cost.T.reshape(-1),
    }
    totals = {
        "point": points,
        "epsilon realised mean": found.epsilon_realised.mean(axis=0),
        "epsilon realised max": found.epsilon_realised.max(axis=0),
        "epsilon data-independent": np.full(points.size, found.epsilon_data_independent),
    }
    if args.loss_distributions:
        spent = realised_pld_epsilon(results.sensitivity, *mechanism, args.delta, weights)
        spent = np.minimum(spent, found.epsilon_realised)
        worst = realised_pld_epsilon(np.ones((1, steps.size, 1)), *mechanism, args.delta, weights)
        totals |= {
            "epsilon realised mean, loss distributions": spent.mean(axis=0),
            "epsilon realised max, loss distributions": spent.max(axis=0),
            "epsilon data-independent, loss distributions": np.full(points.size, worst[0, 0]),
        }
    derived = args.convention == "derived"
    totals |= {
        "realised sum mean": found.realised.mean(axis=0),
        "realised sum max": found.realised.max(axis=0),
        "data-independent": np.full(points.size, found.data_independent),
        LARGEST if derived else "published total": found.composed,
        "best p" if derived else "p": found.holder_exponent,
        "epsilon largest of R runs": found.epsilon_composed,
    }
    return [costs, totals]


def growth(results: SensitivityResults, weights: np.ndarray, args: cli.Namespace) -> Columns:
    """Return the table of the median largest of r runs."""
    mechanism = (results.sample_rate, results.noise_multiplier)
    found = growth_with_runs(results.sensitivity, weights, *mechanism, args.alpha, args.delta)
    table: Columns = {"runs": np.arange(1, len(results.runs) + 1)}
    for name, estimates in (("share of data-independent", found.share), ("epsilon", found.epsilon)):
        for part, end in (("value", ""), ("low", ", low"), ("high", ", high")):
            table[name + end] = np.array([getattr(one, part) for one in estimates])
    return table


def other_direction(
    points: np.ndarray, folds: Sequence[SensitivityResults], weights: np.ndarray, args: cli.Namespace
) -> Columns:
    """Return the columns of D(without || with); empty for points that no fold left out."""
    names = ["epsilon realised mean", *["epsilon realised mean, loss distributions"] * args.loss_distributions]
    names += ["realised sum mean", LARGEST, "epsilon largest of R runs"]
    columns = {f"{name}, without || with": np.full(points.size, np.nan) for name in names} if folds else {}
    sides = np.full(points.size, "one-sided: with || without")
    for fold in folds:
        mechanism = (fold.sample_rate, fold.noise_multiplier)
        found = renyi.reverse_account(
            fold.sensitivity, fold.steps, fold.total_steps, *mechanism, args.alpha, args.delta, not args.measured_only
        )
        values = [found.epsilon_realised.mean(axis=0)]
        if args.loss_distributions:
            spent = realised_pld_epsilon(fold.sensitivity, *mechanism, args.delta, weights, reverse=True)
            values.append(np.minimum(spent, found.epsilon_realised).mean(axis=0))
        values += [found.realised.mean(axis=0), found.largest, found.epsilon_largest]
        here = np.searchsorted(points, fold.points)
        sides[here] = "both"
        for column, value in zip(columns.values(), values, strict=True):
            column[here] = value
    return {"directions": sides, **columns}


if __name__ == "__main__":
    cli.run(main)
