r"""Compare two rankings of the same points, before and after a removal say: every metric of the study.

    python sensitivity/rank_eval.py compo_res/compo_res_all_ranked.csv compo_res/compo_res_cheapest_100_ranked.csv \
        --results_before res/res[0-9]*.csv --results_after res/res_cheapest_100_[0-9]*.csv --paired

Spearman, Kendall and the mean rank shift of the shared points, adjusted by ranking them again among themselves, the
ratio of their costs, and the same of permuted points as a control. With the result files of both: the realised costs
and epsilons of single runs (with --paired, run k before beside run k after) with 95 % intervals over runs, single runs
of other seeds with nothing removed as the yardstick, and of averages over runs trajectories of the clipped norm,
correctness and test accuracy. Refused: result files of one training measured twice, as the published ones are, whose
0.9800, 0.9370 and 19.21 (100 of 1,000 MNIST points removed) compare a training with itself (docs/differences.md).
Correlations with what is constant, such as costs where every norm is clipped, are undefined: nan, and it is said.

Inputs: two files of sensitivity/compo_res/rank.py, `point,Total Privacy Cost`. Output: the table, and with --output
a CSV of it with a JSON sidecar. Measured: 1,000 points and 10 runs in 9 s.
"""

from __future__ import annotations

import libcli as cli

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from libscores import ranking, renyi
from libscores.statistics import Estimate
from libstore import store
from libstore.errors import InputError
from libstore.sensitivity_results import check_removal, read_ranking, read_results, table_bytes, tell_constant


def parse(argv: Sequence[str] | None) -> cli.Namespace:
    """Read the command line."""
    parser = cli.Parser(__doc__)
    parser.add_argument("before", type=Path, help="ranking before")
    parser.add_argument("after", type=Path, help="ranking after; its points must be among those before")
    parser.add_argument(
        "--results_before", type=Path, nargs="+", default=[], help="result files behind `before`; none by default"
    )
    parser.add_argument(
        "--results_after", type=Path, nargs="+", default=[], help="result files behind `after`; none by default"
    )
    parser.add_argument("--paired", action="store_true", help="run k of both lists has the same seed")
    parser.add_argument("--alpha", type=cli.number(float, at_least=2), default=8.0, help="order of realised costs")
    parser.add_argument("--delta", type=cli.fraction, default=1e-5, help="delta of realised epsilons")
    parser.add_argument("--resamples", type=cli.positive_int, default=200, help="bootstrap resamples of the runs")
    parser.add_argument("--seed", type=cli.non_negative_int, default=0, help="seed of resamples and permutations")
    parser.add_argument("--output", type=Path, help="CSV to write the table to; none by default")
    cli.add_overwrite(parser)
    return parser.parse_args(argv)


def load_runs(
    files: Sequence[Path], points: np.ndarray, alpha: float, delta: float
) -> tuple[ranking.Runs, np.ndarray, tuple[str, ...]]:
    """Return the runs of some result files, restricted to these points, their stages as shares of a run, and names."""
    results = read_results(files, columns=["correct"])
    absent = np.setdiff1d(points, results.points)
    if absent.size:
        raise InputError(f"{files[0]}: lacks point {absent[0]}, which both rankings have")
    column = np.searchsorted(results.points, points)
    norms = results.sensitivity[:, :, column]
    weights = renyi.interpolation_weights(results.steps, results.total_steps)
    mechanism = (results.sample_rate, results.noise_multiplier)
    costs = renyi.realised_sum(norms, *mechanism, alpha, weights)
    epsilons = renyi.realised_epsilons(norms, *mechanism, delta, weights)
    correct = results.columns["correct"][:, :, column]
    runs = ranking.Runs(costs, epsilons, norms, correct, results.accuracy[:, -1])
    return runs, results.steps / results.total_steps, results.runs


def check_retrained(before: ranking.Runs, after: ranking.Runs, names: tuple[Sequence[str], Sequence[str]]) -> None:
    """Refuse a run after that is a run before, measured again."""
    for norms, name in zip(after.norms, names[1], strict=True):
        for others, other in zip(before.norms, names[0], strict=True):
            factor = ranking.nothing_retrained(others, norms)
            if factor is not None:
                what = f"its norms are {factor:.6g} times those of {other} at most steps"
                raise InputError(f"{name}: {what}: nothing was trained anew between them")


def main(argv: Sequence[str] | None = None) -> None:
    """Compare, print, save."""
    args = parse(argv)
    if bool(args.results_before) != bool(args.results_after):
        raise InputError("--results_before and --results_after go together")
    (points, before), (points_after, after) = read_ranking(args.before), read_ranking(args.after)
    unknown = np.setdiff1d(points_after, points)
    if unknown.size:
        raise InputError(f"{args.after}: point {unknown[0]} is not in {args.before}")
    if points_after.size < 2:
        raise InputError(f"{args.after}: needs at least 2 points")
    files = [args.before, args.after, *args.results_before, *args.results_after]
    flags = {name: getattr(args, name) for name in ("paired", "alpha", "delta", "resamples", "seed")}
    settings = {**flags, "input_sha256": store.input_digests(files)}
    output = store.Output(args.output, settings, inputs=("input_sha256",)) if args.output else None
    if output:
        output.finished(overwrite=args.overwrite)

    order, order_after = np.argsort(points), np.argsort(points_after)
    kept = np.isin(points[order], points_after)
    costs, gone = before[order][kept], before[order][~kept]
    table: dict[str, Estimate | float] = {"points": float(kept.sum()), "points_removed": float(gone.size)}
    table |= ranking.compare_rankings(costs, after[order_after], gone, args.seed)
    compared: list[tuple[object, np.ndarray]] = [(args.before, costs), (args.after, after)]
    if args.results_before:
        shared = np.sort(points_after)
        runs_before, stages, labels = load_runs(args.results_before, shared, args.alpha, args.delta)
        runs_after, stages_after, labels_after = load_runs(args.results_after, shared, args.alpha, args.delta)
        if not ranking.same_stages(stages, stages_after):
            raise InputError(f"{args.results_after[0]}: measured at other stages than {args.results_before[0]}")
        if args.paired and len(runs_before.costs) != len(runs_after.costs):
            raise InputError(f"--paired: {len(runs_before.costs)} runs before, {len(runs_after.costs)} after")
        check_retrained(runs_before, runs_after, (labels, labels_after))
    check_removal([args.before, args.after], [args.results_before, args.results_after])
    if args.results_before:
        table |= ranking.compare_runs(runs_before, runs_after, args.paired, args.resamples, args.seed)
        for names, runs in ((labels, runs_before), (labels_after, runs_after)):
            compared += [*zip(names, runs.costs, strict=True), *zip(names, runs.epsilons, strict=True)]
    tell_constant(compared)
    for name, value in table.items():
        print(f"{name:42s} {value if isinstance(value, Estimate) else format(value, '.4g')}")
    if output:
        parts = [value if isinstance(value, Estimate) else Estimate(value, np.nan, np.nan) for value in table.values()]
        columns = {part: np.array([getattr(one, part) for one in parts]) for part in ("value", "low", "high")}
        with store.exclusive(output.path.parent):
            output.save(table_bytes({"metric": np.array(list(table)), **columns}), store.provenance())


if __name__ == "__main__":
    cli.run(main)
