#!/bin/sh
# Print the job lines of the per-instance study (sensitivity/compute_sensitivity.py), one per data set, seed and epsilon.
#   sh scripts/create_per_instance_renyi_jobs.sh > per_instance_renyi.sh
#   sh per_instance_renyi.sh
# Flags, by default the grid in scripts/grid.sh: --dataset "D1 D2" --arch A --epsilons "E1 E2" --seeds "S1 S2". Results
# are res/res_<dataset>_<arch>_eps_<epsilon>_seed_<seed>.csv. All other flags go to the script as they are.
. "$(dirname -- "$0")/grid.sh"
script=sensitivity/compute_sensitivity.py dataset=mnist arch=lenet5
epsilons=$instance_epsilons seeds=$instance_seeds suffix='seed_*' named=1
. "$(dirname -- "$0")/dp_jobs.sh"
