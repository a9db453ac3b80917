#!/bin/sh
# The other direction, training without a point against training with it: F folds of points measured by run_loop.sh are
# left out of the training, a fold at a time, and measured there, with the same seeds, sample rate, noise and steps.
#   nohup ./run_folds.sh > output_folds.log 2>&1 &
# Flags: --folds F (2) --fold_size N (30) --runs R (10) --jobs N (1) --runs_per_job M (1) --config FILE --overwrite;
# others go to compute_sensitivity.py and must be those given to run_loop.sh. Goes on where it was; TERM stops cleanly. A
# point's fold leaves N - 1 others out.
. "$(dirname -- "$0")/common.sh"
refuse_flags 'is set here' run more_runs name res_name seed remove_points
folds=${folds:-2}
folder=$(folder)
same_runs
job "$python" sensitivity/folds.py "$folder/res/res1.csv" --folds "$folds" --fold_size "$fold_size" \
    ${overwrite:+"$overwrite"}
for fold in $(seq "$folds"); do
    train "_without_${fold}_" --remove_points "$folder/compo_res/fold_$fold.txt" --points removed --points_sample 0
done
job sh sensitivity/run_compo.sh --config "$config" --runs "$runs" --folds "$folds" ${overwrite:+"$overwrite"}
