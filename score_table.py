"""Every score of every example of a data set in one table.

    python score_table.py --dataset mnist --arch smallcnn

It gathers what is on disk: what the runs of an ensemble say (memorization, held-out consistency), the mean over
networks of every score of calc_curv_fz_models.py, what private models say at each epsilon, and per-instance costs.
Scores that are not there are named with the command that makes them. docs/score_table.md says what the columns are and
how to read them.

Inputs: <fz_model_dir>, <private_model_dir>, their scores, <sensitivity_dir>/compo_res, and the data set's labels.
Outputs: <score_dir>/table_<dataset>_<arch>.parquet, .csv and .json, which describes every column, and
table_<dataset>_<arch>_croissant.json, the same for other programs. Takes seconds for 60 networks and 2,000 digits.
"""

from __future__ import annotations

import libcli as cli
from libcli.choices import add_choices, flags_of_choices, read_network
from libcli.settings import read_settings

import argparse
from collections.abc import Sequence
from pathlib import Path

from libdata.choice import IMAGENET, TableData
from libstore.config import DEFAULT_CONFIG, load_config
from libstore.errors import InputError
from libstore.gathered_private import instance_scores, private_scores, study_at_hand
from libstore.gathered_scores import Places, ensemble_scores
from libstore.recipes import in_one_line, told
from libstore.score_table import Gathered, TableFiles, check_content, join


def parse(argv: Sequence[str] | None) -> cli.Namespace:
    """Read the command line."""
    parser = cli.Parser(__doc__)
    add_choices(parser, kind=TableData)
    parser.add_argument("--ratio", default="0.7", help="the ensemble's folder: share that each run trained on")
    parser.add_argument("--suffix", default="*", help="end of the private models' names, * for any seed")
    parser.add_argument("--h", type=cli.positive_float, default=1e-3, help="step of the private models' curvature")
    text = "totals file of renyi_per_instance_sum_compo.py (default: that of sensitivity/run_compo.sh)"
    parser.add_argument("--per_instance", type=Path, metavar="FILE", help=text)
    text = "influence of every example on the test split"
    parser.add_argument("--influence", action=argparse.BooleanOptionalAction, default=True, help=text)
    text = "keep influence_matrix_<dataset>_<arch>.npy, all training examples by all test examples"
    parser.add_argument("--influence_matrix", action="store_true", help=text)
    cli.add_overwrite(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Gather, join, save."""
    args = parse(argv)
    from libdata.datasets import dataset_name, load_dataset
    from libdata.imagenet import read_imagenet_index

    choice, network, config = read_settings(TableData, args), read_network(args), load_config(args.config)
    imagenet = choice.dataset == IMAGENET
    dataset = IMAGENET if imagenet else dataset_name(choice.dataset, choice.dataset_name)
    places = Places.of(config, dataset, network.name, args.ratio, *flags_of_choices(args, choice))
    if imagenet:
        labels, content = read_imagenet_index(config.imagenet_index).labels, None
    else:
        data = load_dataset(choice.dataset, "train", config.data_dir, **choice.arguments())
        labels, content = data.labels.numpy(), data.content_sha256
    study = study_at_hand(places, len(labels))
    parts = (
        ensemble_scores(places, study, influence=args.influence, matrix=args.influence_matrix),
        private_scores(places, args.suffix, args.h, study),
        instance_scores(places, args.per_instance, study),
    )
    whole = Gathered.of(parts)
    settings = {"dataset": dataset, "arch": network.name, "ratio": args.ratio, "suffix": args.suffix, "h": args.h}
    settings |= {"content_sha256": content, "influence": args.influence, "files": whole.files}
    files = TableFiles(config.score_dir, dataset, network.name, settings)
    if whole.work and files.finished(whole.beside, overwrite=args.overwrite):
        print(f"{files.output.path}: already made of these scores")
        return
    for part in parts:
        part.read()
        content = check_content(part.columns, content, f"{dataset} as it is now")
    whole = Gathered.of(parts)
    given = "" if args.config == str(DEFAULT_CONFIG) else args.config
    for line in told(whole.missing, given):
        print(line)
    if not whole.columns:
        first = in_one_line(next(iter(whole.missing.values())), given)
        raise InputError(f"no score of {dataset} and {network.name} is there; to make one: {first}")
    table = join(whole.columns, labels, () if imagenet else data.class_names)
    files.save(table, whole, content)
    print(f"{files.output.path}: {len(table)} examples, {len(whole.columns)} scores")


if __name__ == "__main__":
    cli.run(main)
