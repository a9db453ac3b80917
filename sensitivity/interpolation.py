"""What measuring at a few stages costs: totals interpolated between stages against every step of the same runs.

    python sensitivity/compute_sensitivity.py --run 1 --points 30 --save_freq 1 --stages 626 --name _every
    python sensitivity/interpolation.py sensitivity/res/res_every.csv --stages 21

Inputs: result files measured at every step (--save_freq 1, and as many stages as steps and one more; that many
checkpoints are kept). Output: for each number of stages the error of the realised sum, of epsilon, and of single steps,
over runs and points; with --output as CSV with a JSON sidecar. Measured: 626 steps, 30 points in 2 s.
"""

from __future__ import annotations

import libcli as cli

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from libscores.renyi import interpolation_error
from libstore import store
from libstore.errors import InputError
from libstore.sensitivity_results import read_results


def parse(argv: Sequence[str] | None) -> cli.Namespace:
    """Read the command line."""
    parser = cli.Parser(__doc__)
    parser.add_argument("files", nargs="+", type=Path, help="result files measured at every step")
    parser.add_argument(
        "--stages", type=cli.number(int, at_least=2), nargs="+", default=[11, 21, 41], help="numbers of stages to try"
    )
    parser.add_argument("--alpha", type=cli.number(float, at_least=2), default=8.0, help="Rényi order of the sums")
    parser.add_argument("--delta", type=cli.fraction, default=1e-5, help="delta of epsilon")
    parser.add_argument("--output", type=Path, help="CSV to write the table to; none by default")
    cli.add_overwrite(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Compare, print, save."""
    args = parse(argv)
    results = read_results(args.files)
    missing = np.setdiff1d(np.arange(results.total_steps), results.steps)
    if missing.size:
        raise InputError(f"{args.files[0]}: step {missing[0]} was not measured; every one of the steps is needed")
    settings = {"stages": args.stages, "alpha": args.alpha, "delta": args.delta}
    settings["input_sha256"] = store.input_digests(args.files)
    output = store.Output(args.output, settings, inputs=("input_sha256",)) if args.output else None
    if output:
        output.finished(overwrite=args.overwrite)
    total = results.total_steps
    rows = []
    for count in args.stages:
        stages = np.unique(np.round(np.linspace(0, total - 1, count)).astype(int))
        found = interpolation_error(
            results.sensitivity[:, :total],
            stages,
            results.sample_rate,
            results.noise_multiplier,
            args.alpha,
            args.delta,
        )
        row: dict[str, float] = {"stages": stages.size}
        for name, values in (("total", found.total), ("epsilon", found.epsilon)):
            for percent in (2.5, 50, 97.5):
                row[f"error of {name}, {percent:g} %"] = float(np.nanpercentile(values, percent))
        row["error of a step, 2.5 %, median point"] = float(np.nanmedian(found.step_low))
        row["error of a step, 97.5 %, median point"] = float(np.nanmedian(found.step_high))
        rows.append(row)
    table = pd.DataFrame(rows)
    print(f"{len(results.runs)} runs, {results.points.size} points, {total} steps")
    print("errors of totals and steps are relative, those of epsilon are differences; percentiles over runs and points")
    print(table.set_index("stages").T.to_string(float_format="{:.4g}".format))
    if output:
        with store.exclusive(output.path.parent):
            output.save(table.to_csv(index=False).encode(), store.provenance())


if __name__ == "__main__":
    cli.run(main)
