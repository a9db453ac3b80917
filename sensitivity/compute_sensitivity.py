"""Per-instance privacy, step 1: train with DP-SGD and measure the gradient norms of chosen points on the way.

    python sensitivity/compute_sensitivity.py --run 1 --points 1000 --stages 41
    python sensitivity/compute_sensitivity.py --run 1 --stage 0.5
    python sensitivity/compute_sensitivity.py --run 1 --checkpoints published/sensitivity/models/ckpt1

The trainer is that of train_dp.py; the defaults are the published settings for MNIST and LeNet (arXiv 2307.00310).
A run's seed is its number unless --seed is given, so that no two runs are the same.

Inputs: the data set under data_dir; with --remove-points, a list of points to leave out of the training; with
--checkpoints, a folder of weights to measure under instead of training: torch files whose names end in their step, such
as the published model_step_<n>, of which the tensors are read and nothing else. Outputs:
<sensitivity_dir>/res/res<name>.csv, a row per point and stage, and <sensitivity_dir>/models/ckpt<name>/step_<n>.pt,
each with a JSON sidecar; <name> is the run's number, or --name and --res_name. A killed run goes on where
it was, to the same bytes.
Measured: about 9 minutes for the published settings on one CPU thread.
"""

from __future__ import annotations

import libcli as cli

import time
from collections.abc import Sequence
from contextlib import nullcontext

import torch

from libmodels.checkpoints import model_bytes
from libmodels.devices import describe_device, resolve_device
from libstore.config import load_config
from libstore.errors import InputError
from libstore.index import index_digest
from libstore.sensitivity_results import FORMAT
from libstore.store import Output, exclusive, made_before, provenance
from libtrain.dp_options import EpochLog, dp_settings, plan_privacy, seeds_of
from libtrain.dp_training import DPTrainer, read_state, seeded_model, train_private
from libtrain.gradient_norms import (
    constant_columns,
    kept_checkpoints,
    load_study_and_points,
    measure_stages,
    parse_run,
    run_parser,
    stage_shares,
)


def main(argv: Sequence[str] | None = None) -> None:
    """Train what is missing, measure, save the rows."""
    args = parse_run(run_parser(__doc__, stages=41), argv)
    device = resolve_device(args.device, deterministic=args.deterministic)
    config = load_config(args.config)
    study, points = load_study_and_points(args, config.data_dir)
    stages, checkpoints = stage_shares(args), kept_checkpoints(args, config.sensitivity_dir, study)
    models, training, total = checkpoints.folder, checkpoints.settings, int(checkpoints.steps[-1])
    part = "" if args.stage is None else f"_stage_{args.stage:g}"
    settings = {**training, "points_sha256": index_digest(points), "stages": stages, "save_freq": args.save_freq}
    path = config.sensitivity_dir / "res" / f"res{args.res_name}{part}.csv"
    result = Output(path, settings | {"run": args.run}, FORMAT)
    state = Output(models / "state.pt", training)
    own = checkpoints.others is None
    with exclusive(models) if own else nullcontext():
        if own and (args.overwrite or not args.resume):
            state.remove()
        if result.finished(overwrite=args.overwrite):
            if own:
                state.remove()
            print(f"{result.path}: finished before, skipped", flush=True)
            return
        started, trained = time.monotonic(), checkpoints.finished(overwrite=args.overwrite)
        if args.stage is not None and not trained:
            raise InputError(f"{models}: not all checkpoints of these settings are there; train first, without --stage")
        kept = read_state(state) if own else None
        privacy = kept["privacy"] if kept else checkpoints.privacy() or plan_privacy(args, study.planned)
        images, labels, *test = study.tensors(device)
        model = seeded_model(study.spec, seeds_of(args)["init"]).to(device)
        trainer = DPTrainer(model, images, labels, dp_settings(args, privacy), torch.from_numpy(study.rows))

        files = [state.path, *(checkpoints.output(step).path for step in checkpoints.steps.tolist())]
        made_by = provenance([one for file in files for one in made_before(file)], **describe_device(device))

        def keep(trainer: DPTrainer) -> None:
            content = model_bytes(trainer.model, study.spec, privacy=privacy)
            checkpoints.output(trainer.step).save(content, made_by | {"privacy": privacy})

        with cli.stop_requests() as stopping, EpochLog(models.name, privacy, args.epochs) as log:
            if not trained and not train_private(
                trainer, state, kept=kept, extra={"privacy": privacy}, made_by=made_by, save_every=args.save_every,
                at=set(checkpoints.steps.tolist()), on_step=keep, report=log, stopping=stopping,
            ):  # fmt: skip
                at = f"stopped after step {trainer.step} of {total}"
                raise cli.Stopped(stopping(), f"{models}: {at}; run the same command again to go on")
            table = measure_stages(trainer, checkpoints, stages, points, study, (test[0], test[1]), stopping)
        made_by |= {"privacy": privacy, "seconds": round(time.monotonic() - started, 3)}
        with exclusive(result.path.parent):
            result.save(table.assign(**constant_columns(args, privacy)).to_csv(index=False).encode(), made_by)
        if own:
            state.remove()
    stages_done, accuracy = table["step"].nunique(), table["accuracy"].iloc[-1]
    print(f"{result.path}: {len(points)} points at {stages_done} stages, test accuracy {accuracy:.4f}", flush=True)


if __name__ == "__main__":
    cli.run(main)
