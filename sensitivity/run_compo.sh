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
if [ -n "$which" ]; then
    removal=${which}_$remove
    account "_${removal}_" "compo_res_$removal" "$@"
    eval "set -- --results_before $(results '') --results_after $(results "_${removal}_")"
    job "$python" sensitivity/rank_eval.py "$compo/compo_res_all_ranked.csv" "$compo/compo_res_${removal}_ranked.csv" \
        "$@" --paired --output "$compo/comparison_$removal.csv" ${overwrite:+"$overwrite"}
fi
if [ -n "$folds" ]; then
    eval "set -- $flags --without $(for fold in $(seq "$folds"); do results "_without_${fold}_"; done)"
    account '' compo_res_both "$@" ${overwrite:+"$overwrite"}
fi
