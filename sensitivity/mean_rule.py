"""What one step costs each point under the mean update rule, beside the sum rule, from sampled batches.

    python sensitivity/mean_rule.py --run 1 --points 100 --stages 5

Thudi et al., arXiv 2307.00310: the divergence of theorem 3.6 and the (epsilon, delta) guarantee of one step where the
update is the mean over the batch at hand, and a bound of our own that couples the batches (libscores/one_step.py,
docs/renyi_composition.md). The coupled bound has a standard error over batches; what tuples of batches give of the
theorem is a lower value, which rises with --tuples.

Inputs: the checkpoints of sensitivity/compute_sensitivity.py; the flags are those it was run with. Output, with a JSON
sidecar: <sensitivity_dir>/compo_res/mean_rule<name>.csv, a row per point and stage.
"""

from __future__ import annotations

import libcli as cli

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch

from libmodels.devices import describe_device, resolve_device
from libstore.config import load_config
from libstore.errors import InputError
from libstore.index import index_digest
from libstore.store import Output, exclusive, provenance
from libtrain.dp_options import dp_settings, plan_privacy, seeds_of
from libtrain.dp_training import DPTrainer, seeded_model
from libtrain.gradient_norms import (
    kept_checkpoints,
    load_study_and_points,
    parse_run,
    run_parser,
    stage_shares,
    stage_steps,
)
from libtrain.mean_rule import FORMAT, measure_mean_rule


def parse(argv: Sequence[str] | None) -> cli.Namespace:
    """Read the command line."""
    parser = run_parser(__doc__, stages=5)
    parser.set_defaults(points="100")
    parser.add_argument("--alpha", type=cli.number(int, at_least=2), default=8, help="Rényi order")
    parser.add_argument("--batches", type=cli.number(int, at_least=2), default=64, help="batches to sample at a stage")
    parser.add_argument("--tuples", type=cli.positive_int, default=16, help="tuples of batches for each number of hits")
    parser.add_argument("--batch_seed", type=cli.non_negative_int, default=0, help="seed of batches and tuples")
    args = parse_run(parser, argv)
    if args.batches <= args.alpha:
        raise InputError(f"--batches {args.batches}: order {args.alpha} takes more than {args.alpha} batches")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Load the checkpoints, measure, save the rows."""
    args = parse(argv)
    device = resolve_device(args.device, deterministic=args.deterministic)
    config = load_config(args.config)
    study, points = load_study_and_points(args, config.data_dir)
    checkpoints = kept_checkpoints(args, config.sensitivity_dir, study)
    flags = {name: getattr(args, name) for name in ("alpha", "batches", "tuples", "batch_seed")}
    settings = {**checkpoints.settings, "points_sha256": index_digest(points), "stages": stage_shares(args), **flags}
    output = Output(config.sensitivity_dir / "compo_res" / f"mean_rule{args.res_name}.csv", settings, FORMAT)
    privacy = checkpoints.privacy() if checkpoints.others is None else plan_privacy(args, study.planned)
    if privacy is None:
        raise InputError(f"{checkpoints.folder}: no checkpoints of these settings; run compute_sensitivity.py first")
    with exclusive(output.path.parent):
        if output.finished(overwrite=args.overwrite):
            print(f"{output.path}: finished before, skipped")
            return
        images, labels, *_ = study.tensors(device)
        model = seeded_model(study.spec, seeds_of(args)["init"]).to(device)
        trainer = DPTrainer(model, images, labels, dp_settings(args, privacy), torch.from_numpy(study.rows))
        rows = torch.from_numpy(np.searchsorted(study.data.index, points))
        wanted = stage_steps(stage_shares(args), trainer.settings.steps, checkpoints.steps)
        tables = []
        with cli.progress(len(wanted), "mean rule", "stages") as bar:
            for step in wanted:
                checkpoints.load(step, trainer)
                table = measure_mean_rule(
                    trainer, points, rows, args.alpha, args.delta, args.batches, args.tuples, args.batch_seed
                )
                tables.append(table.assign(step=step))
                bar.update()
        output.save(
            pd.concat(tables).to_csv(index=False).encode(), provenance(**describe_device(device), privacy=privacy)
        )
    print(f"{output.path}: {len(points)} points at {len(wanted)} stages")
    print(f"theorem 3.6 from {args.tuples} tuples for each number of hits: a lower value, more tuples raise it")
    print(pd.concat(tables).groupby("step").median().drop(columns="point").T.to_string(float_format="{:.4g}".format))


if __name__ == "__main__":
    cli.run(main)
