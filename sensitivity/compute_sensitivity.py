"""Per-instance privacy, step 1: train with DP-SGD and measure the gradient norms of chosen points on the way.

    python sensitivity/compute_sensitivity.py --run 1 --points 1000 --stages 41
    python sensitivity/compute_sensitivity.py --run 1 --stage 0.5
    python sensitivity/compute_sensitivity.py --run 1 --checkpoints published/sensitivity/models/ckpt1

The trainer is that of train_dp.py; the defaults are the published settings for MNIST and LeNet (arXiv 2307.00310).
A run's seed is its number unless --seed is given, so that no two runs are the same. With --more_runs one process takes
several, one after another, to the same files as a process for each; * in names is then a run's number.

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
from libcli.private import add_run, numbered, parse_runs, read_private_training
from libcli.settings import read_settings

import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from libstore.comparable import REMOVAL, Kept, check_alike, kept
from libstore.config import load_config
from libstore.errors import InputError
from libstore.index import index_digest
from libstore.sensitivity_results import FORMAT
from libstore.store import Output, exclusive, made_before, provenance
from libtrain.settings import DPSettings, MeasureSettings, PrivacyPlan

if TYPE_CHECKING:
    from libtrain.gradient_norms import Checkpoints


class Run(NamedTuple):
    """A run to train and measure.

    Attributes:
        number: Its number.
        dp: How it is trained.
        checkpoints: What it keeps, or measures under.
        result: Its result file.
        state: Where it is kept how far the training is.
        finished: Whether the result is there.
        plan: The noise, where it is kept with what is there of the training.
    """

    number: int
    dp: DPSettings
    checkpoints: Checkpoints
    result: Output
    state: Output
    finished: bool
    plan: PrivacyPlan | None


def parse(argv: Sequence[str] | None) -> list[cli.Namespace]:
    """Read the command line; return the flags of every run."""
    parser = cli.Parser(__doc__)
    add_run(parser, several=True)
    text = "result file to be compared with, * for the run's number: where more than run and points differ, nothing is "
    parser.add_argument("--compare_with", metavar="FILE", help=f"{text}trained (default: none)")
    return parse_runs(parser, argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Train what is missing, measure, save the rows."""
    runs = parse(argv)
    from libmodels.checkpoints import model_bytes
    from libmodels.devices import describe_device, resolve_device
    from libtrain.dp_training import DPTrainer, kept_plan, train_private
    from libtrain.gradient_norms import constant_columns, kept_checkpoints, load_study_and_points, measure_stages
    from libtrain.private_study import EpochLog, plan_privacy
    from libtrain.unfinished import Unfinished

    args = runs[0]  # for what all share
    chosen, measuring = read_private_training(args), read_settings(MeasureSettings, args)
    device = resolve_device(args.device, deterministic=args.deterministic)
    config, anew = load_config(args.config), args.overwrite or not args.resume
    study, points = load_study_and_points(*chosen, measuring, config.data_dir)
    calibrations = config.sensitivity_dir / "calibrations"

    def look_at(run: cli.Namespace) -> Run:
        """Say what is there of a run; raises InputError where that is of other settings."""
        dp = replace(chosen.settings, seed=run.seed)
        models = config.sensitivity_dir / "models" / f"ckpt{run.name}"
        checkpoints = kept_checkpoints(models, study, dp, measuring)
        settings = {**checkpoints.settings, "points_sha256": index_digest(points), "stages": measuring.shares}
        settings |= {"save_freq": measuring.save_freq, "run": run.run}
        if measuring.test_examples is not None:
            settings["test_examples"] = measuring.test_examples
        part = "" if measuring.stage is None else f"_stage_{measuring.stage:g}"
        result = Output(config.sensitivity_dir / "res" / f"res{run.res_name}{part}.csv", settings, FORMAT)
        if run.compare_with:
            other = Path(numbered(run.compare_with, run.run))
            if not other.exists():
                raise InputError(f"--compare_with {other}: no such file")
            before, now = kept(other), Kept(result.path, {"settings": result.settings, "format": FORMAT})
            check_alike([before, now], REMOVAL, "; the flags must be those that it was made with")
        state = Output(models / "state.pt", checkpoints.settings)
        finished, plan = result.finished(overwrite=args.overwrite), None
        if not finished:
            trained = checkpoints.finished(overwrite=args.overwrite)
            if measuring.stage is not None and not trained:
                reason = "not all checkpoints of these settings are there; train first, without --stage"
                raise InputError(f"{models}: {reason}")
            plan = (None if anew else kept_plan(state)) or checkpoints.plan(overwrite=args.overwrite)
        return Run(run.run, dp, checkpoints, result, state, finished, plan)

    def train_and_measure(run: Run) -> int:
        """Do what is missing of a run; return the signal that came too late to stop it, else 0."""
        _, dp, checkpoints, result, state, finished, plan = run
        models, own = state.path.parent, checkpoints.others is None
        trainer = None
        if not finished:  # whatever is refused is refused before the folder is touched
            trainer = study.trainer(dp, plan or plan_privacy(dp, study.planned, calibrations), device)
        with exclusive(models) if own else nullcontext():
            if trainer is None or result.finished(overwrite=args.overwrite):
                if own:
                    state.remove()
                print(f"{result.path}: finished before, skipped", flush=True)
                return 0
            if anew and own:
                state.remove()
            started, plan = time.monotonic(), trainer.plan
            privacy = plan.record(dp)
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
                rows = table.assign(**constant_columns(study, dp, plan, measuring, run.number))
                result.save(rows.to_csv(index=False).encode(), made_by)
            if own:
                state.remove()
        stages_done, accuracy = table["step"].nunique(), table["accuracy"].iloc[-1]
        print(f"{result.path}: {len(points)} points at {stages_done} stages, test accuracy {accuracy:.4f}", flush=True)
        return stopping()

    cli.one_after_another(train_and_measure, [look_at(run) for run in runs])


if __name__ == "__main__":
    cli.run(main)
