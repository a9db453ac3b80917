"""Rank points by what they cost, show both ends, and choose the points of a removal experiment.

    python sensitivity/compo_res/rank.py sensitivity/compo_res/compo_res_all_totals.csv --select 100

Inputs: a totals file of renyi_per_instance_sum_compo.py, or a file of per-step costs (`point,step,Privacy cost`, the
published ones too), whose steps are added up. Outputs beside it, each with a JSON sidecar: <file>_ranked.csv,
`point,Total Privacy Cost` from the cheapest, and with --select M <file>_<which>_<M>.txt, the points for
--remove_points: the cheapest, or as controls the dearest or M at random; and <file>_<which>_<M>_kept.txt, the others,
for --points. Takes a second.
"""

from __future__ import annotations

import libcli as cli

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from libscores.ranking import select_points
from libstore import store
from libstore.config import load_config
from libstore.errors import InputError
from libstore.sensitivity_results import TOTAL, read_totals, table_bytes


def parse(argv: Sequence[str] | None) -> cli.Namespace:
    """Read the command line."""
    parser = cli.Parser(__doc__)
    text = "totals, or costs per step (default: <sensitivity_dir>/compo_res/compo_res_all_totals.csv)"
    parser.add_argument("file", type=Path, nargs="?", help=text)
    parser.add_argument(
        "--cost", default="epsilon realised mean",
        help="column of the totals file to rank by; what runs spent, in epsilon, does not grow with their number",
    )  # fmt: skip
    parser.add_argument("--show", type=cli.non_negative_int, default=10, help="points to show at each end")
    parser.add_argument(
        "--select", type=cli.positive_int, help="number of points to write for removal; none by default"
    )
    parser.add_argument("--which", choices=("cheapest", "dearest", "random"), default="cheapest", help="which of them")
    parser.add_argument(
        "--removed", type=Path, help="list of points removed before, which --select's list takes up; none by default"
    )
    parser.add_argument("--seed", type=cli.non_negative_int, default=0, help="seed of --which random")
    cli.add_overwrite(parser)
    return parser.parse_args(argv)


def removed_before(path: Path, points: np.ndarray) -> np.ndarray:
    """Return the points of a list, none of which may be among the ranked."""
    try:
        gone = np.array(path.read_text(encoding="utf-8").split(), dtype=np.int64)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot read points: {error}") from error
    still = np.intersect1d(gone, points)
    if still.size:
        raise InputError(f"{path}: point {still[0]} is among the ranked, so it was not removed before")
    return gone


def main(argv: Sequence[str] | None = None) -> None:
    """Rank, save, show."""
    args = parse(argv)
    args.file = args.file or load_config(args.config).sensitivity_dir / "compo_res" / "compo_res_all_totals.csv"
    points, costs = read_totals(args.file, args.cost)
    if args.select and args.select >= points.size:
        raise InputError(f"{args.file}: --select {args.select} leaves none of its {points.size} points")
    order = np.lexsort((points, costs))
    points, costs = points[order], costs[order]
    stem = args.file.with_name(args.file.stem.removesuffix("_totals"))
    settings = {"cost": args.cost, "input_sha256": store.file_sha256(args.file)}
    ranked = store.Output(Path(f"{stem}_ranked.csv"), settings, inputs=("input_sha256",))
    outputs = [(ranked, table_bytes({"point": points, TOTAL: costs}))]
    if args.select:
        chosen = select_points(points, costs, args.select, args.which, args.seed)
        inside = np.isin(points, chosen)
        tied = np.intersect1d(costs[inside], costs[~inside])
        if args.which != "random" and tied.size:
            alike = int(np.isin(costs, tied).sum())
            cli.warn(f"{args.file}: {alike} points cost the same as the last one chosen; their order decides")
        settings = settings | {"select": args.select, "which": args.which, "seed": args.seed}
        before = np.empty(0, np.int64)
        if args.removed:
            before = removed_before(args.removed, points)
            settings["removed_sha256"] = store.file_sha256(args.removed)
        for end, listed in (("", np.append(before, chosen)), ("_kept", np.setdiff1d(points, chosen))):
            path = Path(f"{stem}_{args.which}_{args.select}{end}.txt")
            outputs.append((store.Output(path, settings), " ".join(map(str, listed.tolist())).encode() + b"\n"))
    with store.exclusive(args.file.parent):
        for output, content in outputs:
            same = output.path.is_file() and output.path.read_bytes() == content
            if not output.finished(overwrite=args.overwrite or same):
                output.save(content, store.provenance(file=args.file.name))
            print(f"{output.path}")
    sides = "the larger where both are known" if args.cost.endswith(", larger") else "one-sided"
    print(f"by {args.cost} ({sides})")
    for title, part in (("cheapest", slice(0, args.show)), ("dearest", slice(max(points.size - args.show, 0), None))):
        print(f"{title}:")
        for point, cost in zip(points[part], costs[part], strict=True):
            print(f"  point {point:6d}  {cost:.6g}")


if __name__ == "__main__":
    cli.run(main)
