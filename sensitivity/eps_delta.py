"""The (epsilon, delta) guarantee of single steps, for each point, from the norms of its gradient.

    python sensitivity/eps_delta.py sensitivity/res/res1.csv sensitivity/res/res2.csv --delta 1e-5

One step of the sum rule from training with the point to training without it, exact for the sampled Gaussian mechanism
with the point's own sensitivity; Thudi et al., arXiv 2307.00310, have it by an inequality (libscores/one_step.py).

Inputs: result files of sensitivity/compute_sensitivity.py, or the published ones, all runs of one experiment. Output,
with a JSON sidecar: <output_dir>/eps_delta.csv, `point,step,epsilon mean,epsilon max` over runs, and the
data-independent epsilon. Measured: 410,000 rows in 3 s.
"""

from __future__ import annotations

import libcli as cli

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from libscores.one_step import FORMAT, sum_rule_epsilon
from libstore import store
from libstore.sensitivity_results import DISTANCE_UNITS, read_results, table_bytes


def parse(argv: Sequence[str] | None) -> cli.Namespace:
    """Read the command line."""
    parser = cli.Parser(__doc__)
    parser.add_argument("files", nargs="+", type=Path, help="result files, one or more runs in each")
    parser.add_argument("--delta", type=cli.fraction, default=1e-5, help="delta of a step")
    parser.add_argument(
        "--distance_unit", choices=DISTANCE_UNITS, default="batch_mean", help="unit of `distance (sum)`"
    )
    parser.add_argument("--output_dir", type=Path, help="compo_res beside the first file's directory by default")
    cli.add_overwrite(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Read the result files, compute, save."""
    args = parse(argv)
    results = read_results(args.files, args.distance_unit)
    directory = args.output_dir or args.files[0].resolve().parent.parent / "compo_res"
    settings = {
        "delta": args.delta,
        "distance_unit": args.distance_unit,
        "input_sha256": store.input_digests(args.files),
    }
    with store.exclusive(directory):
        output = store.Output(directory / "eps_delta.csv", settings, FORMAT, ("input_sha256",))
        if output.finished(overwrite=args.overwrite):
            print(f"{output.path}: already made with these settings")
            return
        mechanism = (results.sample_rate, results.noise_multiplier, args.delta)
        epsilon = sum_rule_epsilon(results.sensitivity, *mechanism)
        size = results.points.size * results.steps.size
        columns = {
            "point": np.repeat(results.points, results.steps.size),
            "step": np.tile(results.steps, results.points.size),
            "epsilon mean": epsilon.mean(axis=0).T.reshape(-1),
            "epsilon max": epsilon.max(axis=0).T.reshape(-1),
            "epsilon data-independent": np.full(size, sum_rule_epsilon(np.array(1.0), *mechanism)),
        }
        output.save(table_bytes(columns), store.provenance(files=[path.name for path in args.files]))
    print(f"{results.points.size} points, {len(results.runs)} runs, {results.steps.size} steps: {output.path}")


if __name__ == "__main__":
    cli.run(main)
