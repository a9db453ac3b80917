#!/bin/sh
# Runs 1 to R of the per-instance study, each on its own seed, N at a time (--jobs).
#   nohup ./run_loop.sh > output.log 2>&1 &
# Flags: --runs R (10) --jobs N (1) --runs_per_job M (1: a process trains M runs, one after another) --config FILE
# --overwrite; others go to compute_sensitivity.py as they are. Finished runs are skipped and an interrupted one goes on
# where it was; TERM stops cleanly. What run 1 says is in <sensitivity_dir>/jobs/train.sh.run/log/1.log.
. "$(dirname -- "$0")/common.sh"
refuse_flags 'differs from run to run' run more_runs name res_name seed
folder=$(folder)
train ''
