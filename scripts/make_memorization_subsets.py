"""Link 3, step 1: training subsets that hold half of the most memorized examples.

    python scripts/make_memorization_subsets.py --dataset mnist --arch smallcnn --top_k 200

Every seed's subset holds a random half of the k most memorized examples and a random share of the others
(arXiv 2402.18726, Section 5.3: k = 500, 70 %). Each of the k is in or out by a coin of its own, so that subsets with
and without it differ by one added example; subsets differ in size, and trainings on them are planned for the expected
one. Seeds 2j and 2j + 1 hold complementary halves of the k: with both, every example has models with and without it.

Inputs: an ensemble under fz_model_dir, whose memorization is estimated, or --scores. Outputs:
<private_model_dir>/subsets/<dataset>/top_k.npy and subset_<seed>.npy, positions in torchvision's order, each with a
JSON sidecar. Takes seconds.
"""

from __future__ import annotations

import libcli as cli
from libcli.choices import add_choices, read_data, read_network

from collections.abc import Sequence

import numpy as np

from libdata.datasets import dataset_name, dataset_size
from libscores.link3 import draw_subset, expected_size, top_k
from libscores.memorization import memorization
from libstore.comparable import kept
from libstore.config import load_config
from libstore.errors import InputError
from libstore.fz import VALUES, ensemble_root, read_run, run_dir
from libstore.index import BY_COINS, index_digest, load_array
from libstore.scored_ensemble import check_runs, checked_runs, usable_runs, values_on
from libstore.store import Output, array_bytes, exclusive, provenance


def seeds(text: str) -> list[int]:
    """Read one seed or, as the generators of job lines take them, several in a word; an argparse type."""
    return [cli.non_negative_int(seed) for seed in text.split()]


def parse(argv: Sequence[str] | None) -> cli.Namespace:
    """Read the command line."""
    parser = cli.Parser(__doc__)
    add = parser.add_argument
    add_choices(parser)
    add("--ensemble_ratio", default="0.7", help="folder of the ensemble's runs")
    add("--value", choices=VALUES, default="prob", help="what a run's value on an example is")
    add("--scores", help="memorization of every training example, .npy, in place of the ensemble's (default: none)")
    add("--top_k", type=cli.number(int, at_least=2), default=500, help="number of most memorized examples")
    add("--ratio", type=cli.fraction, default=0.7, help="share of the other examples in a subset")
    text = "a subset is made for each (default: 0 to 39)"
    add("--seeds", type=seeds, nargs="+", default=[list(range(40))], metavar="SEED", help=text)
    cli.add_overwrite(parser)
    args = parser.parse_args(argv)
    args.seeds = [seed for several in args.seeds for seed in several]
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Choose the examples and draw the subsets."""
    args = parse(argv)
    config, choice, network = load_config(args.config), read_data(args), read_network(args)
    name = dataset_name(choice.dataset, choice.dataset_name)
    size = dataset_size(choice.dataset, "train", config.data_dir)
    if args.scores:
        scores = load_array(args.scores)
        if scores.shape != (size,):
            raise InputError(f"{args.scores}: shape {scores.shape}, expected one score per example of {name}")
        examples, content = np.arange(len(scores)), None
    else:
        root = ensemble_root(config.fz_models(name), name, network.name)
        numbers = usable_runs(root, args.ensemble_ratio)
        check_runs(root, args.ensemble_ratio, numbers)
        folders = [run_dir(root, args.ensemble_ratio, run) for run in numbers]
        first = kept(folders[0] / "aux_arrays.npz")
        content = first.settings["data"].get("content_sha256") if first else None
        examples = read_run(folders[0], size).examples
        pairs = zip(checked_runs(root, args.ensemble_ratio, numbers, size), folders, strict=True)
        runs = (values_on(arrays, folder, examples, args.value) for arrays, folder in pairs)
        scores = memorization(runs, len(examples)).score
    try:
        top = top_k(scores, args.top_k)
    except ValueError as error:
        raise InputError(f"--top_k {args.top_k}: {error}") from error

    folder = config.private_models(name) / "subsets" / name
    settings = {"scores_sha256": index_digest(np.ascontiguousarray(scores, "<f8").view("<i8")), "top_k": args.top_k}
    settings |= {"examples_sha256": index_digest(examples)}
    if content:
        settings |= {"content_sha256": content}
    planned = expected_size(len(top), len(examples), args.ratio)
    outputs = [(Output(folder / "top_k.npy", settings), examples[top])]
    for seed in args.seeds:
        subset = draw_subset(top, len(examples), args.ratio, seed)
        drawn = {"drawn": BY_COINS, "planned": planned, "ratio": args.ratio, "seed": seed}
        made = Output(folder / f"subset_{seed}.npy", settings | drawn)
        outputs.append((made, examples[subset]))
    with exclusive(folder):
        finished = [output.finished(overwrite=args.overwrite) for output, _ in outputs]
        for (output, index), there in zip(outputs, finished, strict=True):
            if not there:
                output.save(array_bytes(index), provenance())
    sizes = f"{args.top_k} most memorized (scores from {np.sort(scores[top])[0]:.3f} up), subsets of about {planned}"
    print(f"{folder}: {sizes} for seeds {' '.join(map(str, args.seeds))}")


if __name__ == "__main__":
    cli.run(main)
