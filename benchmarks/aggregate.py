"""Memory and rate of averaging curvature over an ensemble of ImageNet's size, beside plain reading of its files.

    python benchmarks/aggregate.py [--runs 2000] [--examples 1281167] [--distinct 8]

Writes score arrays and aux_arrays.npz of the real shapes for a few runs, links them to as many runs as asked for,
and takes the mean, its standard error and the maximum over the models that hold each example (libscores.over_models),
with every check of the readers: SHA-256, ranges, repeats. Plain reading is np.load of the same arrays. The disk's
cache is warm in both. The check at the end is against the plain maximum of the first 1,000 examples.
"""

from __future__ import annotations

import libcli as cli

import os
import resource
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from libscores.over_models import over_models
from libstore.fz import read_run, run_dir
from libstore.scores import CURVATURE, fz_model_name, score_path
from libstore.store import Output, array_bytes, arrays_bytes, load_scores

RATIO, H = "0.7", 1e-3


def places(folder: Path, run: int) -> tuple[Path, Path]:
    """Return where the scores of a run and its directory are."""
    scores = score_path(folder / "scores", CURVATURE, fz_model_name("imagenet", "resnet50", RATIO, run), H)
    return scores, run_dir(folder / "fz_models" / "imagenet-resnet50", RATIO, run)


def write(folder: Path, runs: int, distinct: int, n_examples: int) -> None:
    """Write `distinct` runs and hard links to them for the others."""
    rng = np.random.default_rng(0)
    n_train = int(0.7 * n_examples)
    for run in range(runs):
        path, directory = places(folder, run)
        path.parent.mkdir(parents=True)
        directory.mkdir(parents=True)
        if run >= distinct:
            first, first_directory = places(folder, run % distinct)
            os.link(first, path)
            os.link(first.with_suffix(".json"), path.with_suffix(".json"))
            os.link(first_directory / "aux_arrays.npz", directory / "aux_arrays.npz")
            continue
        chosen = rng.permutation(n_examples)
        index = {"train": chosen[:n_train], "removed": chosen[n_train:], "test": np.arange(50_000)}
        arrays: dict[str, np.ndarray] = {f"index_{group}": values for group, values in index.items()} | {
            "subsample_idx": index["train"]
        }
        arrays |= {f"correctness_{group}": rng.random(len(values)) < 0.8 for group, values in index.items()}
        (directory / "aux_arrays.npz").write_bytes(arrays_bytes(**arrays))
        Output(path, {}).save(array_bytes(rng.gamma(0.5, size=n_examples).astype(np.float32)), {})


def plain(folder: Path, runs: int) -> None:
    """Read every array of every run and do nothing with it."""
    for run in range(runs):
        path, directory = places(folder, run)
        np.load(path, allow_pickle=False)
        with np.load(directory / "aux_arrays.npz", allow_pickle=False) as arrays:
            for name in arrays.files:
                arrays[name]


def ours(folder: Path, runs: int, n_examples: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield membership and curvature of every run."""
    examples = np.arange(n_examples)
    for run in range(runs):
        path, directory = places(folder, run)
        mask, _ = read_run(directory).on(examples)
        yield mask, load_scores(path)[0]


def main(argv: Sequence[str] | None = None) -> None:
    """Print seconds per run, the ratio and the peak of memory."""
    parser = cli.Parser(__doc__)
    parser.add_argument("--runs", type=cli.positive_int, default=200, help="models")
    parser.add_argument("--distinct", type=cli.positive_int, default=8, help="models with files of their own")
    parser.add_argument("--examples", type=cli.positive_int, default=1_281_167, help="examples")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder, args.runs, args.distinct, args.examples)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        plain(folder, min(args.runs, args.distinct))
        started = time.perf_counter()
        plain(folder, args.runs)
        reading = (time.perf_counter() - started) / args.runs
        started = time.perf_counter()
        result = over_models(ours(folder, args.runs, args.examples), args.examples)
        aggregating = (time.perf_counter() - started) / args.runs
        few = list(ours(folder, min(args.runs, args.distinct), args.examples))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    held = np.array([np.where(mask[:1000], value[:1000], np.nan) for mask, value in few])
    assert np.array_equal(np.fmax.reduce(held), result.maximum[:1000], equal_nan=True)
    print(f"{args.runs} models x {args.examples:,} examples")
    print(f"plain reading   {reading * 1e3:6.0f} ms a model")
    print(f"mean, error, max {aggregating * 1e3:5.0f} ms a model, {aggregating / reading:.1f} x plain reading")
    print(f"2,000 models    {aggregating * 2000 / 60:6.1f} min")
    print(f"peak memory     {peak / 1024:6.0f} MB, {before / 1024:.0f} MB of it before the first model was read")
    published = args.runs * args.examples * (4 + 8 + 8) / 2**20  # scores, masks and correctness, stacked
    print(f"stacked, as published: {published:,.0f} MB, for 2,000 models {published * 2000 / args.runs:,.0f} MB")


if __name__ == "__main__":
    cli.run(main)
