"""Split result files into one file per run and point, and average each point over the runs.

    python sensitivity/res/res_splitter.py sensitivity/res/res1.csv sensitivity/res/res2.csv

Inputs: result files of one experiment, or one that res_concat.py made of them. Outputs in <output_dir>, by default
res_per_point beside the first file: res_run<X>_point<Y>.csv with the rows of run X and point Y, res_runA_point<Y>.csv
with the average over runs, `step,point,distance (sum)`, and last res_runA.csv, all averages, with a JSON sidecar.
Runs that are identical bit for bit are refused. Measured: 1,000 points and 10 runs in 7 s.
"""

from __future__ import annotations

import libcli as cli

from collections.abc import Sequence
from pathlib import Path

from libstore import store
from libstore.result_rows import split
from libstore.sensitivity_results import DISTANCE, read_results


def parse(argv: Sequence[str] | None) -> cli.Namespace:
    """Read the command line."""
    parser = cli.Parser(__doc__)
    parser.add_argument("files", nargs="+", type=Path, help="result files")
    parser.add_argument(
        "--output_dir", type=Path, help="folder to write to; by default res_per_point beside the first file"
    )
    cli.add_overwrite(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Check the files together, then split them."""
    args = parse(argv)
    directory = args.output_dir or args.files[0].parent / "res_per_point"
    with store.exclusive(directory):
        settings = {"input_sha256": store.input_digests(args.files)}
        output = store.Output(directory / "res_runA.csv", settings, inputs=("input_sha256",))
        if output.finished(overwrite=args.overwrite):
            print(f"{directory}: already made from these files")
            return
        results = read_results(args.files, columns=[DISTANCE])
        output.save(split(args.files, results, directory), store.provenance(files=[file.name for file in args.files]))
    print(f"{directory}: {len(results.runs)} runs, {results.points.size} points")


if __name__ == "__main__":
    cli.run(main)
