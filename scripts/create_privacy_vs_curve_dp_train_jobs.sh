#!/bin/sh
# Print the job lines of Link 2's private models (train_dp.py), one per data set, seed and epsilon.
#   sh scripts/create_privacy_vs_curve_dp_train_jobs.sh > train_privacy_vs_curve_dp.sh
#   sh train_privacy_vs_curve_dp.sh
# Flags, by default the papers' grid in scripts/grid.sh: --dataset "D1 D2" --arch A --epsilons "E1 E2" --seeds "S1 S2"
# --suffix 'seed_*' (the end of a model's name, * for its seed). All other flags
# go to train_dp.py as they are, but --epsilons_per_job M (1) --seeds_per_job N (1): a line trains the models of M
# epsilons for each of N seeds in one process.
. "$(dirname -- "$0")/grid.sh"
script=train_dp.py dataset=$link2_datasets epsilons=$link2_epsilons seeds=$link2_seeds suffix='seed_*'
. "$(dirname -- "$0")/dp_jobs.sh"
