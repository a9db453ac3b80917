#!/bin/sh
# Runs 1 to R of the per-instance study, each on its own seed, one after another.
#   nohup ./run_loop.sh > output.log 2>&1 &
# Flags: --runs R (10) --config FILE --overwrite; others go to compute_sensitivity.py as they are. Finished runs are
# skipped and an interrupted one goes on where it was; TERM stops cleanly.
. "$(dirname -- "$0")/common.sh"
refuse_flags 'differs from run to run' run name seed
folder=$(folder)
train ''
