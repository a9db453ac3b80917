#!/bin/sh
# The removal experiment: rank the points of run_loop.sh, remove M of them, train again with the same seeds, compare.
#   nohup ./run_loop_rm.sh > output_rm.log 2>&1 &
# Flags: --which cheapest (controls: dearest, random) --remove M (100) --runs R (10) --jobs N (1) --runs_per_job K (1)
# --config FILE --overwrite; others go to compute_sensitivity.py and must be those given to run_loop.sh. Goes on where it
# was; TERM stops cleanly.
. "$(dirname -- "$0")/common.sh"
refuse_flags 'is set here' run more_runs name res_name seed remove_points
which=${which:-cheapest}
folder=$(folder)
same_runs
compo=$folder/compo_res
list=$compo/compo_res_all_${which}_$remove
account '' compo_res_all ${overwrite:+"$overwrite"}
job "$python" sensitivity/compo_res/rank.py "$compo/compo_res_all_totals.csv" --select "$remove" --which "$which" \
    ${overwrite:+"$overwrite"}
train "_${which}_${remove}_" --remove_points "$list.txt" --points "${list}_kept.txt" --points_sample 0
compare_removal ${overwrite:+"$overwrite"}
