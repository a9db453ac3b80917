#!/bin/sh
# Print the job lines that train an ensemble on random subsets (train_fz_models.py).
#   sh scripts/create_fz_train_jobs.sh [--runs N] [--runs_per_job M] [flags of train_fz_models.py] > jobs.sh
# N is 1000 by default and M is 1. Without --dataset and --arch, training means the small CNN on MNIST and scoring the
# papers' CIFAR-100 ensemble: give both generators the same. Paths in flags count from the top of the repository.
script=train_fz_models.py
. "$(dirname -- "$0")/run_ranges.sh"
