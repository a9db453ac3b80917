#!/bin/sh
# The tables of the study, of the runs that are there: sh docs/mnist_study/make.sh CORRECTED PUBLISHED
# CORRECTED, PUBLISHED: the sensitivity_dir of each mechanism in run.sh. Of every removal, the runs that are there before and
# after count. Writes <mechanism>_*.csv beside this file, and the table in README.md.
set -eu
. "$(dirname -- "$0")/../../scripts/flags.sh"
case ${1:-} in -h | --help) help ;; esac
[ $# -eq 2 ] || refuse "CORRECTED and PUBLISHED are needed; see --help"
for folder in "$1" "$2"; do
    [ -e "$folder/res/res1.csv" ] || refuse "$folder/res/res1.csv: no such run; run.sh makes it"
done
corrected=$(realpath -- "$1") published=$(realpath -- "$2") out=$(dirname -- "$script_file")
cd "$out/../.."
work=$(mktemp -d)
trap 'rm -rf -- "$work"' EXIT
account() { # NAME FILES...
    name=$1
    shift
    python renyi_per_instance_sum_compo.py "$@" --output_dir "$work" --name "$name"
    python sensitivity/compo_res/rank.py "$work/${name}_totals.csv" --show 0
}
for mechanism in corrected published; do
    case $mechanism in corrected) res=$corrected/res ;; published) res=$published/res ;; esac
    set --
    for run in 1 2 3 4 5 6 7 8 9 10; do [ ! -e "$res/res$run.csv" ] || set -- "$@" "$res/res$run.csv"; done
    account $mechanism "$@"
    for end in totals runs; do cp "$work/${mechanism}_$end.csv" "$work/${mechanism}_$end.json" "$out"; done
    redrawn=''
    for seed in init order noise; do
        [ ! -e "$res/res_$seed.csv" ] || redrawn="$redrawn '$seed=$res/res_$seed.csv'"
    done
    eval "python sensitivity/redrawn.py \"\$@\" ${redrawn:+--redrawn $redrawn} --output '$out/${mechanism}_seeds.csv' --overwrite"
    for which in cheapest random dearest; do
        rm -f -- "$out/${mechanism}_$which.csv" "$out/${mechanism}_$which.json"
        before='' after=''
        for run in 1 2 3 4 5 6 7 8 9 10; do
            removed=$res/res_${which}_100_$run.csv
            if [ -e "$res/res$run.csv" ] && [ -e "$removed" ]; then
                before="$before '$res/res$run.csv'" after="$after '$removed'"
            fi
        done
        [ -n "$before" ] || continue
        eval "account before_$which $before"
        eval "account after_$which $after"
        eval "python sensitivity/rank_eval.py '$work/before_${which}_ranked.csv' '$work/after_${which}_ranked.csv' \
            --results_before $before --results_after $after --paired --output '$out/${mechanism}_$which.csv'"
        rm -f -- "$work"/before_* "$work"/after_*
    done
done
python sensitivity/study_table.py "$out" >"$work/table.md"
sed -e "/^<!-- results -->/r $work/table.md" -e '/^<!-- results -->/,/^<!-- end -->/{//!d;}' "$out/README.md" >"$work/README.md"
cp "$work/README.md" "$out/README.md"
