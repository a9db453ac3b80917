#!/bin/sh
# One run of the per-instance study: train, measure, save (compute_sensitivity.py, which takes the flags).
#   ./run.sh --run 1 [--more_runs 2 3] [--config FILE] [flags of compute_sensitivity.py]
. "$(dirname -- "$0")/common.sh"
eval "set -- $flags"
exec "$python" sensitivity/compute_sensitivity.py --config "$config" ${overwrite:+"$overwrite"} "$@"
