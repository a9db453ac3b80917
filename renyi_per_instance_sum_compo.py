#!/usr/bin/env python3
"""Per-instance Rényi accounting of gradient-norm files: what each point's presence costs DP-SGD.

Claim: most points cost far less than the data-independent guarantee (Thudi et al., arXiv 2307.00310).
Command: python renyi_per_instance_sum_compo.py sensitivity/res/res1.csv sensitivity/res/res2.csv
In: result files of sensitivity/compute_sensitivity.py, or the published ones; all runs of one experiment together.
Out: <output_dir>/<name>.csv, `point,step,Privacy cost`, and <name>_totals.csv, one row per point.
Runtime: 410,000 rows (1,000 points, 41 steps, 10 runs) take about 3 s on one CPU core, most of it reading.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from libdata import cli, store
from libdata.sensitivity_results import DISTANCE_UNITS, STEP_COST, read_results, table_bytes
from libscores import renyi


def parser() -> cli.Parser:
    """Return the command line."""
    flags = cli.Parser(__doc__)
    flags.add_argument("files", nargs="+", type=Path, help="result files, one or more runs each")
    flags.add_argument("--alpha", type=cli.number(float, at_least=2), default=8.0, help="Rényi order")
    flags.add_argument("--delta", type=cli.fraction, default=1e-5, help="delta of the (epsilon, delta) columns")
    flags.add_argument("--convention", choices=("derived", "published"), default="derived", help="composition formula")
    flags.add_argument(
        "--distance_unit",
        choices=DISTANCE_UNITS,
        default=DISTANCE_UNITS[0],
        help="unit of `distance (sum)`: clipped norm / batch size as saved, or taken for the norm as one reader did",
    )
    flags.add_argument(
        "--fractional_orders",
        choices=("interpolated", "rounded_up"),
        default="interpolated",
        help="divergence at the fractional orders of the composition",
    )
    flags.add_argument("--measured_only", action="store_true", help="add up the measured steps, not all by interpolation")
    flags.add_argument("--total_steps", type=cli.positive_int, help="steps of a run (default: from the files)")
    flags.add_argument("--output_dir", type=Path, help="default: compo_res beside the first file's directory")
    flags.add_argument("--name", help="name of the output (default: compo_<file>, or compo_res_all for several)")
    flags.add_argument("--overwrite", action="store_true", help="replace an output made with other settings")
    return flags


def main(argv: Sequence[str] | None = None) -> None:
    """Read result files, account, save the costs and the totals."""
    args = parser().parse_args(argv)
    started = time.monotonic()
    results = read_results(args.files, args.distance_unit, total_steps=args.total_steps)
    name = args.name or ("compo_res_all" if len(args.files) > 1 else f"compo_{args.files[0].stem}")
    directory = args.output_dir or args.files[0].resolve().parent.parent / "compo_res"
    chosen = ("alpha", "delta", "convention", "distance_unit", "fractional_orders", "measured_only")
    settings = {
        **{flag: getattr(args, flag) for flag in chosen},
        "inputs": {path.name: store.file_sha256(path) for path in args.files},
        "runs": len(results.runs),
        "measured_steps": len(results.steps),
        "total_steps": results.total_steps,
        "sample_rate": results.sample_rate,
        "noise_multiplier": results.noise_multiplier,
        "max_grad_norm": results.max_grad_norm,
        "estimate": "expectations over the runs at hand"
        + ("" if args.measured_only else "; costs between measured steps interpolated"),
    }
    with store.exclusive(directory):
        outputs = [store.Output(directory / f"{name}{part}.csv", settings) for part in ("", "_totals")]
        if all([output.finished(overwrite=args.overwrite) for output in outputs]):
            print(f"{outputs[0].path}: already made with these settings")
            return
        account = renyi.account(
            results.sensitivity, results.steps, results.total_steps, results.sample_rate, results.noise_multiplier,
            args.alpha, args.delta, args.convention, not args.measured_only, args.fractional_orders,
        )  # fmt: skip
        points, steps = results.points, results.steps
        costs = {
            "point": np.repeat(points, steps.size),
            "step": np.tile(steps, points.size),
            STEP_COST: account.cost.T.reshape(-1),
        }
        totals = {
            "point": points,
            "composed bound" if args.convention == "derived" else "published total": account.composed,
            "best p" if args.convention == "derived" else "p": account.holder_exponent,
            "realised sum mean": account.realised.mean(axis=0),
            "realised sum max": account.realised.max(axis=0),
            "data-independent": np.full(points.size, account.data_independent),
            "epsilon composed": account.epsilon_composed,
            "epsilon realised mean": account.epsilon_realised.mean(axis=0),
            "epsilon realised max": account.epsilon_realised.max(axis=0),
            "epsilon data-independent": np.full(points.size, account.epsilon_data_independent),
        }
        made_by = store.provenance(seconds=round(time.monotonic() - started, 3), runs=results.runs)
        for output, columns in zip(outputs, (costs, totals), strict=True):
            output.save(table_bytes(columns), made_by)
            print(f"saved {output.path}")
    print(f"{points.size} points, {len(results.runs)} runs, {steps.size} of {results.total_steps} steps measured")


if __name__ == "__main__":
    cli.run(main)
