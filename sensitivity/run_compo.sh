#!/bin/sh
# Accounting and ranking of the runs of run_loop.sh; with --which, also of run_loop_rm.sh's, and their comparison; with
# --folds, both directions (compo_res_both), from run_folds.sh's runs.
#   ./run_compo.sh [--runs R] [--which cheapest|dearest|random --remove M] [--folds F]
# Flags: --runs R (10) --remove M (100) --config FILE --overwrite; others go to renyi_per_instance_sum_compo.py.
. "$(dirname -- "$0")/common.sh"
folder=$(folder)
compo=$folder/compo_res
eval "set -- $flags"
[ -z "$overwrite" ] || set -- "$@" "$overwrite"
account '' compo_res_all "$@"
[ -z "$which" ] || compare_removal "$@"
if [ -n "$folds" ]; then
    eval "set -- $flags --without $(for fold in $(seq "$folds"); do results "_without_${fold}_"; done)"
    account '' compo_res_both "$@" ${overwrite:+"$overwrite"}
fi
