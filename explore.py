"""A page to look at the examples of a score table: which ones do the scores point at?

    python explore.py --dataset mnist --arch smallcnn

One HTML file that needs no server and no network: two linked scatter plots of any columns, the example under the cursor
with all its scores, a table of what is selected, saved as a CSV of positions.

Inputs: <score_dir>/table_<dataset>_<arch>.parquet and .json of score_table.py, and the data set. Outputs:
<figure_dir>/explore_<dataset>_<arch>.html with a sidecar. Seconds; 60,000 digits with 20 scores are under 30 MB.
"""

from __future__ import annotations

import libcli as cli
from libcli.choices import add_choices, flags_of_choices, read_data, read_network

from collections.abc import Sequence
from pathlib import Path

from libstore.config import DEFAULT_CONFIG, load_config
from libstore.errors import InputError
from libstore.recipes import command, in_one_line
from libstore.store import Output, exclusive, file_sha256, provenance

VIEW = {"x1": "x", "y1": "y", "x2": "x2", "y2": "y2", "colour": "colour"}


def main(argv: Sequence[str] | None = None) -> None:
    """Read the table and the data, choose, lay out, save."""
    parser = cli.Parser(__doc__)
    add_choices(parser)
    for flag, what in (("x", "across, first plot"), ("y", "up, first plot"), ("x2", "across, second plot")):
        parser.add_argument(f"--{flag}", metavar="COLUMN", help=f"column shown first {what} (default: what fits)")
    parser.add_argument("--y2", metavar="COLUMN", help="column shown first up, second plot (default: as --y)")
    parser.add_argument("--colour", metavar="COLUMN", help="column shown first by colour (default: the class)")
    text = "most examples on the page; of more, the extremes of every score and a sample are kept"
    parser.add_argument("--points", type=cli.number(int, at_least=100), default=60_000, help=text)
    text = "text file with a line for each training example, shown instead of numbers or ids (default: those)"
    parser.add_argument("--texts", metavar="FILE", type=Path, help=text)
    cli.add_overwrite(parser)
    args = parser.parse_args(argv)
    import numpy as np

    from libdata.datasets import check_same_content, dataset_name, load_dataset
    from libplots.explorer import FORMAT, default_view, made_with, page
    from libplots.explorer_data import choose_examples, pairs_of, pictures, read_scores, read_texts
    from libstore.score_table import MAKER, check_columns, table_path

    config, choice = load_config(args.config), read_data(args)
    dataset, arch = dataset_name(args.dataset, args.dataset_name), read_network(args).name
    given = "" if args.config == str(DEFAULT_CONFIG) else args.config
    make = in_one_line(command(MAKER, *flags_of_choices(args, choice)), given)
    table = read_scores(table_path(config.score_dir, dataset, arch), make)
    view = default_view(table.scores)
    for key, flag in VIEW.items():
        asked = getattr(args, flag)
        if asked is not None:
            check_columns(table.about, {asked} - set(table.frame.columns), table.path, given)
            view[key] = asked
    if args.y is not None and args.y2 is None:
        view["y2"] = args.y

    rows, weights = choose_examples(table.frame[table.scores].to_numpy(), args.points)
    examples = table.frame["example"].to_numpy()[rows]
    data = load_dataset(args.dataset, "train", config.data_dir, index=examples, **choice.arguments())
    check_same_content(data, {"content_sha256": table.about["data_sha256"]}, table.path)
    other = np.flatnonzero(data.labels.numpy() != table.frame["label"].to_numpy()[rows])
    if other.size:
        raise InputError(f"{table.path}: the label of example {examples[other[0]]} is not the data's")
    texts = read_texts(args.texts, data.split_size)[examples].tolist() if args.texts else None

    settings = {
        "table": table.sha256, "data": data.identity(), "view": view, "points": args.points,
        "texts": file_sha256(args.texts) if args.texts else None, "page": made_with(),
    }  # fmt: skip
    output = Output(config.figure_dir / f"explore_{dataset}_{arch}.html", settings, FORMAT, tuple(settings))
    with exclusive(output.path.parent):
        if not output.finished(overwrite=args.overwrite):
            influence = pairs_of(table.pairs, examples)
            wanted, influence["picture"] = np.unique(influence["test_example"], return_inverse=True)
            influence["test_label"] = influence["picture"]
            shown = {"train": {"texts": texts} if texts else pictures(data.images.numpy()), "test": {}}
            if wanted.size:
                test = load_dataset(args.dataset, "test", config.data_dir, index=wanted, **choice.arguments())
                influence["test_label"] = test.labels.numpy()[influence["picture"]]
                shown["test"] = pictures(test.images.numpy())
            classes = {"num_classes": data.num_classes, "class_names": data.class_names}
            about = {"title": f"{dataset}, {arch}: examples by their scores", "name": f"{dataset}_{arch}"}
            content = page(table, rows, weights, view, shown, influence, about | classes)
            output.save(content, provenance())
    print(f"{output.path}: {len(rows)} of {len(table.frame)} examples")


if __name__ == "__main__":
    cli.run(main)
