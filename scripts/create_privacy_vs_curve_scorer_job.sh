#!/bin/sh
# Print the job lines that score the curvature of examples under Link 2's private models, one per model.
#   sh scripts/create_privacy_vs_curve_scorer_job.sh > score_privacy_vs_curve.sh
#   sh score_privacy_vs_curve.sh
# Flags, by default the papers' grid in scripts/grid.sh: --dataset "D1 D2" --arch A --epsilons "E1 E2" --seeds "S1 S2"
# --suffix 'seed_*' (as for training). All other flags go to calc_curv_private_models.py as they are.
. "$(dirname -- "$0")/grid.sh"
script=calc_curv_private_models.py dataset=$link2_datasets epsilons=$link2_epsilons seeds=$link2_seeds suffix='seed_*'
. "$(dirname -- "$0")/dp_jobs.sh"
