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
from libcli.settings import add_settings, read_settings

import time
from collections.abc import Sequence
from pathlib import Path

from libscores import renyi
from libstore import store
from libstore.instance_tables import AccountSettings, account_tables
from libstore.left_out import check_trained_on, read_left_out
from libstore.sensitivity_results import read_results, table_bytes


def parse(argv: Sequence[str] | None) -> cli.Namespace:
    """Read the command line."""
    parser = cli.Parser(__doc__)
    parser.add_argument("files", nargs="+", type=Path, help="result files, one or more runs in each")
    add_settings(parser, AccountSettings)
    parser.add_argument(
        "--without", type=Path, nargs="+", default=[], metavar="FILE",
        help="result files of points left out of the training (run_folds.sh); none by default",
    )  # fmt: skip
    parser.add_argument("--total_steps", type=cli.positive_int, help="steps of a run; by default what the files say")
    parser.add_argument("--output_dir", type=Path, help="compo_res beside the first file's directory by default")
    parser.add_argument("--name", help="name of the outputs; by default compo_<file>, compo_res_all for several")
    cli.add_overwrite(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Read the result files, do the accounting, save costs and totals."""
    args = parse(argv)
    started, how = time.monotonic(), read_settings(AccountSettings, args)
    check_trained_on(args.files, expected=True)
    results = read_results(args.files, args.distance_unit, total_steps=args.total_steps)
    folds = list(read_left_out(args.without, results, args.files, args.distance_unit, args.total_steps))
    name = args.name or ("compo_res_all" if len(args.files) > 1 else f"compo_{args.files[0].stem}")
    directory = args.output_dir or args.files[0].resolve().parent.parent / "compo_res"
    settings = {
        **how.as_dict(),
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
        tables = account_tables(results, folds, how)
        made_by = store.provenance(seconds=round(time.monotonic() - started, 3), files=[f.name for f in args.files])
        for output, columns in zip(outputs, tables, strict=True):
            output.save(table_bytes(columns), made_by)
    measured = f"{results.steps.size} of {results.total_steps} steps measured"
    print(f"{results.points.size} points, {len(results.runs)} runs, {measured}")
    two = sum(fold.points.size for fold in folds)
    print(f"D(with || without) of all points; both directions of {two}, the others are one-sided")
    print(f"costs of steps in {outputs[0].path}, totals in {outputs[1].path}")


if __name__ == "__main__":
    cli.run(main)
