"""Put the result files of several runs into one.

    python sensitivity/res/res_concat.py sensitivity/res/res1.csv sensitivity/res/res2.csv

Inputs: result files of one experiment. Output, with a JSON sidecar: <output>, by default res_concat.csv beside the
first file: every row and column as it was, and a column `run` that tells the files apart. Runs that are identical bit
for bit, or whose settings differ, are refused. Takes a second per 100,000 rows.
"""

from __future__ import annotations

import libcli as cli

from collections.abc import Sequence
from pathlib import Path

from libstore import store
from libstore.result_rows import concatenate
from libstore.sensitivity_results import read_results


def parse(argv: Sequence[str] | None) -> cli.Namespace:
    """Read the command line."""
    parser = cli.Parser(__doc__)
    parser.add_argument("files", nargs="+", type=Path, help="result files")
    parser.add_argument("--output", type=Path, help="file to write; by default res_concat.csv beside the first file")
    cli.add_overwrite(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Check the files together, then write them as one."""
    args = parse(argv)
    path = args.output or args.files[0].parent / "res_concat.csv"
    with store.exclusive(path.parent):
        output = store.Output(path, {"input_sha256": store.input_digests(args.files)}, inputs=("input_sha256",))
        if output.finished(overwrite=args.overwrite):
            print(f"{path}: already made from these files")
            return
        results = read_results(args.files)
        output.save(concatenate(args.files), store.provenance(files=[file.name for file in args.files]))
    print(f"{path}: {len(results.runs)} runs, {results.points.size} points, {results.steps.size} steps")


if __name__ == "__main__":
    cli.run(main)
