"""Per-instance privacy: what the presence of each point costs DP-SGD, from the norms of its gradient.

    python renyi_per_instance_sum_compo.py sensitivity/res/res1.csv sensitivity/res/res2.csv

Composes the Rényi divergences of the steps in expectation over runs (after Thudi et al., USENIX Security 2024,
arXiv 2307.00310) and puts beside it what each run spent and the data-independent cost. All runs of one experiment go
in together.

Inputs: result files of sensitivity/compute_sensitivity.py, or the published ones. Outputs, each with a JSON sidecar:
<output_dir>/<name>.csv, `point,step,Privacy cost`, and <name>_totals.csv, a row per point. Measured: 410,000 rows
(1,000 points, 41 steps, 10 runs) in 3 s on one CPU core, most of it reading and writing.
"""

from __future__ import annotations

import libcli as cli

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from libscores import renyi
from libstore import store
from libstore.sensitivity_results import DISTANCE_UNITS, STEP_COST, read_results, table_bytes


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
    parser.add_argument("--measured_only", action="store_true", help="total over measured steps, not interpolated")
    parser.add_argument("--total_steps", type=cli.positive_int, help="steps of a run; by default what the files say")
    parser.add_argument("--output_dir", type=Path, help="compo_res beside the first file's directory by default")
    parser.add_argument("--name", help="name of the outputs; by default compo_<file>, compo_res_all for several")
    cli.add_overwrite(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Read the result files, do the accounting, save costs and totals."""
    args = parse(argv)
    started = time.monotonic()
    results = read_results(args.files, args.distance_unit, total_steps=args.total_steps)
    name = args.name or ("compo_res_all" if len(args.files) > 1 else f"compo_{args.files[0].stem}")
    directory = args.output_dir or args.files[0].resolve().parent.parent / "compo_res"
    flags = ("alpha", "delta", "convention", "distance_unit", "fractional_orders", "measured_only")
    settings = {
        **{flag: getattr(args, flag) for flag in flags},
        "input_sha256": store.input_digests(args.files),
        "runs": len(results.runs),
        "measured_steps": results.steps.size,
        "total_steps": results.total_steps,
        "sample_rate": results.sample_rate,
        "noise_multiplier": results.noise_multiplier,
        "estimate": "expectations are over the runs at hand"
        + ("" if args.measured_only else "; costs between measured steps are interpolated"),
    }
    with store.exclusive(directory):
        paths = [directory / f"{name}{part}.csv" for part in ("", "_totals")]
        inputs = ("input_sha256", "runs", "measured_steps")
        outputs = [store.Output(path, settings, renyi.FORMAT, inputs) for path in paths]
        if all([output.finished(overwrite=args.overwrite) for output in outputs]):
            print(f"{outputs[1].path}: already made with these settings")
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
        made_by = store.provenance(seconds=round(time.monotonic() - started, 3), files=[f.name for f in args.files])
        for output, columns in zip(outputs, (costs, totals), strict=True):
            output.save(table_bytes(columns), made_by)
    print(f"{points.size} points, {len(results.runs)} runs, {steps.size} of {results.total_steps} steps measured")
    print(f"costs of steps in {outputs[0].path}, totals in {outputs[1].path}")


if __name__ == "__main__":
    cli.run(main)
