#!/bin/sh
# Recursive removal: rank the points of run_loop.sh, remove the M cheapest, train again, rank, remove the next M, ...
#   nohup ./run_recursive.sh > output_recursive.log 2>&1 &
# Flags: --rounds K (3) --remove M (100) --runs R (10) --jobs N (1) --runs_per_job L (1) --config FILE --overwrite;
# others go to compute_sensitivity.py and must be those given to run_loop.sh. Goes on where it was; TERM stops cleanly.
# Round 1 is the removal of run_loop_rm.sh, and is not trained twice; round k's costs are
# compo_res/compo_res_recursive_<M>_<k>_totals.csv, and compo_res/recursive_<M>.csv says what fewer trainings would have
# said.
. "$(dirname -- "$0")/common.sh"
refuse_flags 'is set here' run more_runs name res_name seed remove_points
folder=$(folder)
same_runs
compo=$folder/compo_res
account '' compo_res_all ${overwrite:+"$overwrite"}
source=$compo/compo_res_all gone='' totals='' round=1
while [ "$round" -le "$rounds" ]; do
    totals="$totals $(quoted "${source}_totals.csv")"
    job "$python" sensitivity/compo_res/rank.py "${source}_totals.csv" --select "$remove" --show 0 \
        ${gone:+--removed "$gone"} ${overwrite:+"$overwrite"}
    gone=${source}_cheapest_$remove.txt
    experiment=cheapest_$remove
    [ "$round" -eq 1 ] || experiment=recursive_${remove}_$round
    train "_${experiment}_" --remove_points "$gone" --points "${source}_cheapest_${remove}_kept.txt" --points_sample 0
    account "_${experiment}_" "compo_res_$experiment" ${overwrite:+"$overwrite"}
    source=$compo/compo_res_$experiment
    round=$((round + 1))
done
eval "set -- $totals $(quoted "${source}_totals.csv")"
job "$python" sensitivity/recursive.py "$@" --output "$compo/recursive_$remove.csv" ${overwrite:+"$overwrite"}
