"""One table of a study with two mechanisms: accuracy, agreement between seeds, removals, what redrawing a seed does.

    python sensitivity/study_table.py docs/mnist_study

Inputs: a folder with <mechanism>_seeds.csv of redrawn.py and <mechanism>_<which>.csv of rank_eval.py; <mechanism> is
corrected or published, <which> cheapest, random or dearest. Output: the table on standard output, in Markdown; what is
not there is said to be missing. Takes a second.
"""

from __future__ import annotations

import libcli as cli

from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd

from libscores.ranking import RANK_METRICS
from libscores.statistics import Estimate
from libstore.errors import InputError
from libstore.sensitivity_results import read_comparison
from libstore.store import read_sidecar

MECHANISMS = {"corrected": "as corrected", "published": "mechanism as published"}
MISSING = "not run"
METRICS = dict(zip(RANK_METRICS, ("Spearman", "Kendall", "mean rank shift"), strict=True))
SEEDS = {"init": "initial weights", "order": "batches", "noise": "noise"}


def read_seeds(path: Path) -> dict[tuple[str, str], Estimate]:
    """Read a table of redrawn.py, by what was redrawn and statistic; empty if it is not there.

    Raises:
        InputError: It is no such table.
    """
    if not path.exists():
        return {}
    table = pd.read_csv(path)
    missing = {"redrawn", "statistic", "value", "low", "high"} - set(table)
    if missing:
        raise InputError(f"{path}: lacks the column {min(missing)!r} of a table of sensitivity/redrawn.py")
    return {(row.redrawn, row.statistic): Estimate(row.value, row.low, row.high) for row in table.itertuples()}


def removal_cell(path: Path, metric: str) -> str:
    """Return one metric of a removal, by epsilon, with the yardstick of other seeds and the number of pairs of runs."""
    if not path.exists():
        return MISSING
    table = read_comparison(path)
    pairs = (len(read_sidecar(path)["settings"]["input_sha256"]) - 2) // 2
    yardstick = f"{metric}_epsilon_other_seeds"
    beside = f"; other seeds {table[yardstick]}" if yardstick in table.index else ""
    return f"{table[f'{metric}_epsilon']}{beside} ({pairs} pairs)"


def rows(folder: Path) -> list[tuple[str, list[str]]]:
    """Return the lines of the table: a name, and a cell for each mechanism."""
    seeds = {name: read_seeds(folder / f"{name}_seeds.csv") for name in MECHANISMS}

    def line(name: str, cell: Callable[[str], str]) -> tuple[str, list[str]]:
        return name, [cell(mechanism) for mechanism in MECHANISMS]

    def of(redrawn: str, statistic: str) -> Callable[[str], str]:
        return lambda mechanism: str(seeds[mechanism].get((redrawn, statistic), MISSING))

    found = [line("runs", of("nothing", "runs")), line("test accuracy", of("nothing", "test accuracy"))]
    found.append(line("median realised ε, one-sided", of("nothing", "median epsilon")))
    for metric, name in METRICS.items():
        found.append(line(f"runs of other seeds: {name}", of("everything", metric)))
    for which in ("cheapest", "random", "dearest"):
        for metric, name in METRICS.items():
            cells = [removal_cell(folder / f"{mechanism}_{which}.csv", metric) for mechanism in MECHANISMS]
            found.append((f"100 {which} removed: {name}", cells))
    for seed, name in SEEDS.items():
        for metric in ("spearman", "mean_rank_shift"):
            found.append(line(f"run 1, {name} redrawn: {METRICS[metric]}", of(seed, metric)))
        found.append(line(f"run 1, {name} redrawn: median change of ε", of(seed, "median change of epsilon")))
        found.append(line(f"run 1, {name} redrawn: the same, absolute", of(seed, "median absolute change of epsilon")))
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = cli.Parser(__doc__)
    parser.add_argument("folder", type=Path, help="folder of the tables")
    args = parser.parse_args(argv)
    if not args.folder.is_dir():
        raise InputError(f"{args.folder}: no such folder")
    print("| |", " | ".join(MECHANISMS.values()), "|")
    print("|---" * (1 + len(MECHANISMS)) + "|")
    for name, cells in rows(args.folder):
        print("|", " | ".join([name, *cells]), "|")


if __name__ == "__main__":
    cli.run(main)
