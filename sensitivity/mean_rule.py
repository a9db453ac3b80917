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
from libcli.private import add_run, parse_runs, read_private_training
from libcli.settings import add_settings, read_settings

from collections.abc import Sequence

import numpy as np

from libstore.config import load_config
from libstore.errors import InputError
from libstore.index import index_digest
from libstore.store import Output, exclusive, provenance
from libtrain.settings import MeanRuleSettings, MeasureSettings


def main(argv: Sequence[str] | None = None) -> None:
    """Load the checkpoints, measure, save the rows."""
    parser = cli.Parser(__doc__)
    add_run(parser, points="100", stages=5)
    add_settings(parser, MeanRuleSettings)
    (args,) = parse_runs(parser, argv)
    import pandas as pd
    import torch

    from libmodels.devices import describe_device, resolve_device
    from libtrain.gradient_norms import kept_checkpoints, load_study_and_points
    from libtrain.mean_rule import FORMAT, measure_mean_rule
    from libtrain.private_study import plan_privacy

    chosen, measuring, how = (
        read_private_training(args),
        read_settings(MeasureSettings, args),
        read_settings(MeanRuleSettings, args),
    )
    device = resolve_device(args.device, deterministic=args.deterministic)
    config, dp = load_config(args.config), chosen.settings
    study, points = load_study_and_points(*chosen, measuring, config.data_dir)
    models = config.sensitivity_dir / "models" / f"ckpt{args.name}"
    checkpoints = kept_checkpoints(models, study, dp, measuring)
    settings = {**checkpoints.settings, "points_sha256": index_digest(points), "stages": measuring.shares}
    path = config.sensitivity_dir / "compo_res" / f"mean_rule{args.res_name}.csv"
    output = Output(path, settings | how.as_dict(), FORMAT)
    if checkpoints.others is None:
        plan = checkpoints.plan()
    else:
        plan = plan_privacy(dp, study.planned, config.sensitivity_dir / "calibrations")
    if plan is None:
        raise InputError(f"{models}: no checkpoints of these settings; run compute_sensitivity.py first")
    with exclusive(path.parent):
        if output.finished(overwrite=args.overwrite):
            print(f"{path}: finished before, skipped")
            return
        trainer = study.trainer(dp, plan, device)
        rows = torch.from_numpy(np.searchsorted(study.data.index, points))
        wanted = measuring.stage_steps(plan.steps, checkpoints.steps.tolist())
        tables = []
        with cli.progress(len(wanted), "mean rule", "stages") as bar:
            for step in wanted:
                checkpoints.load(step, trainer)
                tables.append(measure_mean_rule(trainer, points, rows, how).assign(step=step))
                bar.update()
        made_by = provenance(**describe_device(device), privacy=plan.record(dp))
        output.save(pd.concat(tables).to_csv(index=False).encode(), made_by)
    print(f"{path}: {len(points)} points at {len(wanted)} stages")
    print(f"theorem 3.6 from {how.tuples} tuples for each number of hits: a lower value, more tuples raise it")
    print(pd.concat(tables).groupby("step").median().drop(columns="point").T.to_string(float_format="{:.4g}".format))


if __name__ == "__main__":
    cli.run(main)
