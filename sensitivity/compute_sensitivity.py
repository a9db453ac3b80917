"""Per-instance privacy, step 1: train with DP-SGD and measure the gradient norms of chosen points on the way.

    python sensitivity/compute_sensitivity.py --run 1 --points 1000 --stages 41
    python sensitivity/compute_sensitivity.py --run 1 --stage 0.5
    python sensitivity/compute_sensitivity.py --run 1 --checkpoints published/sensitivity/models/ckpt1

The trainer is that of train_dp.py; the defaults are the published settings for MNIST and LeNet (arXiv 2307.00310).
A run's seed is its number unless --seed is given, so that no two runs are the same.

Inputs: the data set under data_dir; with --remove_points, a list of points to leave out of the training; with
--checkpoints, a folder of weights to measure under instead of training: torch files whose names end in their step, such
as the published model_step_<n>, of which the tensors are read and nothing else. Outputs:
<sensitivity_dir>/res/res<name>.csv, a row per point and stage, and <sensitivity_dir>/models/ckpt<name>/step_<n>.pt,
each with a JSON sidecar; <name> is the run's number, or --name and --res_name. A killed run goes on where
it was, to the same bytes.
Measured: about 9 minutes for the published settings on one CPU thread.
"""

from __future__ import annotations

import libcli as cli
from libcli.private import add_run, parse_run, read_private_training
from libcli.settings import read_settings

import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from libstore.comparable import REMOVAL, Kept, check_alike, kept
from libstore.config import load_config
from libstore.errors import InputError
from libstore.index import index_digest
from libstore.sensitivity_results import FORMAT
from libstore.store import Output, exclusive, made_before, provenance
from libtrain.settings import MeasureSettings


def main(argv: Sequence[str] | None = None) -> None:
    """Train what is missing, measure, save the rows."""
    parser = cli.Parser(__doc__)
    add_run(parser)
    text = "result file to be compared with: where more than run and points differ, nothing is trained (default: none)"
    parser.add_argument("--compare_with", type=Path, metavar="FILE", help=text)
    args = parse_run(parser, argv)
    from libmodels.checkpoints import model_bytes
    from libmodels.devices import describe_device, resolve_device
    from libtrain.dp_training import DPTrainer, kept_plan, train_private
    from libtrain.gradient_norms import constant_columns, kept_checkpoints, load_study_and_points, measure_stages
    from libtrain.private_study import EpochLog, plan_privacy
    from libtrain.unfinished import Unfinished

    chosen, measuring = read_private_training(args), read_settings(MeasureSettings, args)
    device = resolve_device(args.device, deterministic=args.deterministic)
    config, dp = load_config(args.config), chosen.settings
    study, points = load_study_and_points(*chosen, measuring, config.data_dir)
    calibrations = config.sensitivity_dir / "calibrations"
    models = config.sensitivity_dir / "models" / f"ckpt{args.name}"
    checkpoints = kept_checkpoints(models, study, dp, measuring)
    settings = {**checkpoints.settings, "points_sha256": index_digest(points), "stages": measuring.shares}
    settings |= {"save_freq": measuring.save_freq, "run": args.run}
    if measuring.test_examples is not None:
        settings["test_examples"] = measuring.test_examples
    part = "" if measuring.stage is None else f"_stage_{measuring.stage:g}"
    result = Output(config.sensitivity_dir / "res" / f"res{args.res_name}{part}.csv", settings, FORMAT)
    if args.compare_with:
        before, now = kept(args.compare_with), Kept(result.path, {"settings": result.settings, "format": FORMAT})
        check_alike([before, now], REMOVAL, "; the flags must be those that it was made with")
    state, anew = Output(models / "state.pt", checkpoints.settings), args.overwrite or not args.resume

    trainer = None
    if not result.finished(overwrite=args.overwrite):  # whatever is refused is refused before the folder is touched
        trained = checkpoints.finished(overwrite=args.overwrite)
        if measuring.stage is not None and not trained:
            raise InputError(f"{models}: not all checkpoints of these settings are there; train first, without --stage")
        there = (None if anew else kept_plan(state)) or checkpoints.plan(overwrite=args.overwrite)
        plan = there or plan_privacy(dp, study.planned, calibrations)
        trainer = study.trainer(dp, plan, device)
    own = checkpoints.others is None
    with exclusive(models) if own else nullcontext():
        if trainer is None or result.finished(overwrite=args.overwrite):
            if own:
                state.remove()
            print(f"{result.path}: finished before, skipped", flush=True)
            return
        if anew and own:
            state.remove()
        started, privacy = time.monotonic(), plan.record(dp)
        files = [state.path, *(checkpoints.output(step).path for step in checkpoints.steps.tolist())]
        made_by = provenance([one for file in files for one in made_before(file)], **describe_device(device))

        def keep(trainer: DPTrainer) -> None:
            content = model_bytes(trainer.model, study.spec, privacy=privacy)
            checkpoints.output(trainer.step).save(content, made_by | {"privacy": privacy})

        with cli.stop_requests() as stopping, EpochLog(models.name, dp, plan, calibrations) as log:
            if not checkpoints.finished(overwrite=args.overwrite):
                unfinished = Unfinished(state, save_every=args.save_every, stopping=stopping, made_by=made_by)
                train_private(trainer, unfinished, at=set(checkpoints.steps.tolist()), on_step=keep, report=log)
            table = measure_stages(trainer, checkpoints, measuring, points, study, stopping)
        made_by |= {"privacy": privacy, "seconds": round(time.monotonic() - started, 3)}
        with exclusive(result.path.parent):
            rows = table.assign(**constant_columns(study, dp, plan, measuring, args.run))
            result.save(rows.to_csv(index=False).encode(), made_by)
        if own:
            state.remove()
    stages_done, accuracy = table["step"].nunique(), table["accuracy"].iloc[-1]
    print(f"{result.path}: {len(points)} points at {stages_done} stages, test accuracy {accuracy:.4f}", flush=True)


if __name__ == "__main__":
    cli.run(main)
