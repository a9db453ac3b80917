#!/bin/sh
# Print the job lines of Link 3's private models (train_dp.py), one per data set, seed and epsilon. A seed's model is
# trained on SUBSET_DIR/<dataset>/subset_<seed>.npy, which make_memorization_subsets.py makes.
#   sh scripts/create_privacy_vs_memorization_dp_train_jobs.sh > train_privacy_vs_memorization_dp.sh
#   sh train_privacy_vs_memorization_dp.sh
# Flags, by default the papers' grid in scripts/grid.sh: --dataset "D1 D2" --arch A --epsilons "E1 E2" --seeds "S1 S2"
# --subset_dir SUBSET_DIR (subsets/ in the private_model_dir of --config) --suffix 'memorization_seed_*' (the end of a
# model's name, * for its seed). All other flags go to train_dp.py as they are, but
# --epsilons_per_job M (1) --seeds_per_job N (1): a line trains the models of M epsilons for each of N seeds in one process.
. "$(dirname -- "$0")/grid.sh"
script=train_dp.py dataset=$link3_datasets epsilons=$link3_epsilons seeds=$link3_seeds suffix='memorization_seed_*'
on_subsets=1
. "$(dirname -- "$0")/dp_jobs.sh"
