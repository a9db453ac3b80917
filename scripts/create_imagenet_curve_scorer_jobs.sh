#!/bin/sh
# Print the job lines that score Feldman and Zhang's ImageNet models (calc_curv_fz_imagenet_models.py).
#   sh scripts/create_imagenet_curve_scorer_jobs.sh [--runs N] [--runs_per_job M] [flags of the script] > jobs.sh
# N is 100 by default and M is 4, as published; up to 2,000 models were released. To share a model among jobs,
# print the lines once for each part of its files: --runs_per_job 1 --shards 0-255, then 256-511, and so on.
script=calc_curv_fz_imagenet_models.py runs=100 runs_per_job=4 inclusive=1
. "$(dirname -- "$0")/run_ranges.sh"
