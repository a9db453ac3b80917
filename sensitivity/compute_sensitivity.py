"""Per-instance privacy, step 1: train with DP-SGD and measure the gradient norms of chosen points on the way.

    python sensitivity/compute_sensitivity.py --run 1 --points 1000 --stages 41
    python sensitivity/compute_sensitivity.py --run 1 --stage 0.5

The trainer is that of train_dp.py; the defaults are the published settings for MNIST and LeNet (arXiv 2307.00310).
A run's seed is its number unless --seed is given, so that no two runs are the same.

Inputs: the data set under data_dir; with --remove-points, a list of points to leave out of the training. Outputs:
<sensitivity_dir>/res/res<name>.csv, a row per point and stage, and <sensitivity_dir>/models/ckpt<name>/step_<n>.pt,
each with a JSON sidecar; <name> is the run's number, or --name and --res_name. A killed run goes on where
it was, to the same bytes.
Measured: about 9 minutes for the published settings on one CPU thread.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from libdata import cli
from libdata.config import load_config
from libdata.datasets import dataset_size
from libdata.errors import InputError
from libdata.index import index_digest
from libdata.store import Output, exclusive, provenance
from libmodels.checkpoints import model_bytes
from libmodels.devices import resolve_device
from libmodels.dp_options import EpochLog, add_dp_options, dp_settings, load_study, n_steps, plan_privacy, settings_of
from libmodels.dp_training import DPTrainer, read_state, seeded_model, train_private
from libmodels.gradient_norms import Checkpoints, choose_points, constant_columns, measure, read_points, stage_steps


def parse(argv: Sequence[str] | None) -> cli.Namespace:
    """Read the command line."""
    parser = cli.Parser(__doc__)
    add_dp_options(parser, epsilon=10.0)
    parser.set_defaults(arch="lenet5", epochs=40, optimizer="sgd", lr=0.1, lr_drops=[], seed=None)
    add = parser.add_argument
    add("--run", type=cli.positive_int, default=1, help="number of the run; also its seed unless --seed is given")
    add("--name", help="what follows ckpt in the name of the checkpoints' folder (default: the run's number)")
    add("--res_name", help="what follows res in the name of the result file (default: as --name)")
    add(
        "--points", default="1000", help="points to measure: the first N, a range A-B, or a file; 0 for the sample only"
    )
    add("--points-sample", type=cli.non_negative_int, default=0, metavar="K", help="measure K random others as well")
    add("--points-seed", type=cli.non_negative_int, default=0, metavar="S", help="seed of --points-sample")
    add("--remove-points", metavar="FILE", help="points to leave out of the training (default: none)")
    add("--stages", type=cli.number(int, at_least=2), default=41, help="measure at i/(STAGES-1) of the training")
    add(
        "--stage",
        type=cli.number(float, at_least=0),
        help="measure at this one share only, from its checkpoint (default: all)",
    )
    add("--save_freq", type=cli.positive_int, default=100, help="steps between checkpoints")
    args = parser.parse_args(argv)
    args.seed = args.run if args.seed is None else args.seed
    args.name = args.name or str(args.run)
    args.res_name = args.res_name or args.name
    if args.stage is not None and args.stage > 1:
        parser.error(f"argument --stage: {args.stage:g} is out of range, must be <= 1")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Train what is missing, measure, save the rows."""
    args = parse(argv)
    config, device = load_config(args.config), resolve_device(args.device)
    size = dataset_size(args.dataset, "train")
    removed = read_points(args.remove_points, size) if args.remove_points else np.empty(0, np.int64)
    study = load_study(args, config.data_dir, leave_out=removed)
    points = choose_points(args, study, removed)
    stages = [i / (args.stages - 1) for i in range(args.stages)] if args.stage is None else [args.stage]

    models = config.sensitivity_dir / "models" / f"ckpt{args.name}"
    part = "" if args.stage is None else f"_stage_{args.stage:g}"
    training = settings_of(args, study)
    settings = training | {"points_sha256": index_digest(points), "stages": stages, "save_freq": args.save_freq}
    result = Output(config.sensitivity_dir / "res" / f"res{args.res_name}{part}.csv", settings | {"run": args.run})
    total = n_steps(args, len(study.rows))
    steps = np.unique(np.append(np.arange(0, total, args.save_freq), total))
    checkpoints, state = Checkpoints(models, steps, training), Output(models / "state.pt", training)
    with exclusive(models):
        if args.overwrite or not args.resume:
            state.remove()
        if result.finished(overwrite=args.overwrite):
            state.remove()
            print(f"{result.path}: finished before, skipped", flush=True)
            return
        started, trained = time.monotonic(), checkpoints.finished(overwrite=args.overwrite)
        if args.stage is not None and not trained:
            raise InputError(f"{models}: not all checkpoints of these settings are there; train first, without --stage")
        kept = read_state(state)
        privacy = kept["privacy"] if kept else checkpoints.privacy() or plan_privacy(args, len(study.rows))
        images, labels, *test = study.tensors(device)
        model = seeded_model(study.spec, args.seed).to(device)
        trainer = DPTrainer(model, images, labels, dp_settings(args, privacy), torch.from_numpy(study.rows))

        def keep(trainer: DPTrainer) -> None:
            content = model_bytes(trainer.model, study.spec, privacy=privacy)
            checkpoints.output(trainer.step).save(content, provenance(device=str(device), privacy=privacy))

        with cli.stop_requests() as stopping, EpochLog(models.name, privacy, args.epochs) as log:
            if not trained and not train_private(
                trainer, state, kept=kept, extra={"privacy": privacy}, save_every=args.save_every,
                at=set(steps.tolist()), on_step=keep, report=log, stopping=stopping,
            ):  # fmt: skip
                at = f"stopped after step {trainer.step} of {total}"
                raise cli.Stopped(stopping(), f"{models}: {at}; run the same command again to go on")

        rows = torch.from_numpy(np.searchsorted(study.data.index, points))
        tables, wanted = [], stage_steps(stages, total, steps)
        with cli.progress(len(wanted), f"measuring {models.name}", "stages") as bar:
            for step in wanted:
                checkpoints.load(step, trainer)
                columns = measure(trainer, points, rows, (test[0], test[1]))
                tables.append(pd.DataFrame({"step": step, **columns, **constant_columns(args, privacy)}))
                bar.update()
        made_by = provenance(device=str(device), privacy=privacy, seconds=round(time.monotonic() - started, 3))
        with exclusive(result.path.parent):
            result.save(pd.concat(tables).to_csv(index=False).encode(), made_by)
        state.remove()
    accuracy = tables[-1]["accuracy"].iloc[0]
    print(f"{result.path}: {len(points)} points at {len(wanted)} stages, test accuracy {accuracy:.4f}", flush=True)


if __name__ == "__main__":
    cli.run(main)
