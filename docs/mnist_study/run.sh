#!/bin/sh
# The runs of the study, two mechanisms: as corrected, and as published (noise 256 times what the settings say).
#   nohup sh docs/mnist_study/run.sh CORRECTED.json PUBLISHED.json [-j N] > study.log 2>&1 &
# Configurations that differ in sensitivity_dir; N jobs at a time, by default one per core. The same line goes on where it
# was. 38 runs in all; the most telling come first, so that make.sh has something to say of a part of them.
set -eu
. "$(dirname -- "$0")/../../scripts/flags.sh"
case ${1:-} in -h | --help) help ;; esac
[ $# -ge 2 ] || refuse "CORRECTED.json and PUBLISHED.json are needed; see --help"
for config in "$1" "$2"; do
    [ -f "$config" ] || refuse "$config: no such configuration"
done
corrected=$(realpath -- "$1") published=$(realpath -- "$2")
shift 2
cd "$(dirname -- "$script_file")/../.."
dir() { python -c 'import sys; from libstore import config; print(config.load_config(sys.argv[1]).sensitivity_dir)' "$1"; }
at_c=$(dir "$corrected") at_p=$(dir "$published")
[ "$at_c" != "$at_p" ] || refuse "$corrected, $published: the same sensitivity_dir, $at_c"
mkdir -p -- "$at_c"

# line MECHANISM FLAGS...; removal MECHANISM WHICH RUN
line() {
    case $1 in
        c) words="--config '$corrected'" ;;
        p) words="--config '$published' --max_grad_norm 256" ;;
    esac
    shift
    echo "python sensitivity/compute_sensitivity.py $words $*"
}
removal() {
    case $1 in c) list=$at_c ;; p) list=$at_p ;; esac
    list=$list/compo_res/compo_res_all_${2}_100
    line "$1" --run "$3" --name "_${2}_100_$3" --remove_points "'$list.txt'" --points "'${list}_kept.txt'"
}

{
    for run in 1 2; do line c --run $run; line p --run $run; done
    line c --run 3
} >"$at_c/study_1.sh"
sh scripts/run_jobs.sh "$at_c/study_1.sh" "$@"

# The points to remove, chosen by these runs alone, so that later ones do not change the choice.
for at in "$at_c" "$at_p"; do
    files="'$at/res/res1.csv' '$at/res/res2.csv'"
    [ "$at" = "$at_p" ] || files="$files '$at/res/res3.csv'"
    eval "python renyi_per_instance_sum_compo.py $files --output_dir '$at/compo_res' --name compo_res_all"
    for which in cheapest random dearest; do
        python sensitivity/compo_res/rank.py "$at/compo_res/compo_res_all_totals.csv" --cost 'realised sum mean' \
            --select 100 --which $which --show 0
    done
done

{
    for run in 1 2; do removal c cheapest $run; removal p cheapest $run; done
    for seed in init order noise; do
        line c --run 1 --${seed}_seed 101 --name _$seed
        line p --run 1 --${seed}_seed 101 --name _$seed
    done
    removal c cheapest 3
    for run in 1 2 3; do removal c random $run; removal c dearest $run; done
    line p --run 3
    removal p cheapest 3
    for run in 4 5 6 7 8 9 10; do line c --run $run; removal c cheapest $run; done
} >"$at_c/study_2.sh"
sh scripts/run_jobs.sh "$at_c/study_2.sh" "$@"
