# Sourced by the generators of private models: one line of $script per data set, seed and epsilon, or for several of them.
# In: $script, the grid ($dataset $epsilons $seeds, lists), $suffix (the end of a model's name, * for the seed) and, where
# models are trained on subsets, $on_subsets; with $named, lines say --name and not --suffix.
# Other flags than those read here are passed on as they are, once the script has accepted them.
# shellcheck shell=sh disable=SC2154
set -eu
word() { echo "$1"; }
. "$(dirname -- "$0")/flags.sh"
subset_dir='' config='' dataset_name='' arch_name='' given=$# papers=$dataset epsilons_per_job=1 seeds_per_job=1 grouped=''
[ "$script" != train_dp.py ] || grouped='epsilons_per_job seeds_per_job'
listed='dataset epsilons seeds'
read_flags "dataset arch epsilons seeds suffix config dataset_name arch_name $grouped${on_subsets:+ subset_dir}" '' "$@"
refuse_flags 'differs from line to line: see --epsilons, --seeds and --subset_dir' \
    epsilon more_epsilons seed more_seeds run more_runs train_subset subset
positive --epsilons_per_job "$epsilons_per_job"
positive --seeds_per_job "$seeds_per_job"
refuse_flags 'is not for these models, which are trained on all examples' subset_dir
case $suffix in *\**) ;; *) suffix=$suffix'*' ;; esac # before, the seed followed what was given
for epsilon in $epsilons; do
    case $epsilon in *[!0-9.]* | *.*.* | .) refuse "--epsilons: $epsilon is not a positive number" ;; esac
done
for seed in $seeds; do
    case $seed in *[!0-9]*) refuse "--seeds: $seed is not a whole number" ;; esac
done
names=''
[ -z "$dataset_name" ] || names="$names --dataset_name $(quoted "$dataset_name")"
[ -z "$arch_name" ] || names="$names --arch_name $(quoted "$arch_name")"
[ -z "$config" ] || names="$names --config $(quoted "$config")"
flags=$names$flags

# known DATA: set $on_disk, $network and $subsets to what DATA and the network are called, and where DATA's subsets are.
known() {
    on_disk=$1 network=$arch subsets=$subset_dir/$1
    case $1$dataset_name$arch$arch_name in *[!A-Za-z0-9_]*) outside=1 ;; *) outside='' ;; esac
    if [ -z "$outside" ] && { [ -z "${on_subsets:-}" ] || [ -n "$subset_dir" ]; }; then return; fi
    set -- "python scripts/names_on_disk.py --dataset $(quoted "$1") --arch $(quoted "$arch")$names"
    found=$(cd -- "$(dirname -- "$script_file")/.." && sh -c "$1") || exit
    on_disk=$(echo "$found" | sed -n 1p) network=$(echo "$found" | sed -n 2p)
    if [ -n "$subset_dir" ]; then subsets=$subset_dir/$on_disk; else subsets=$(echo "$found" | sed -n 3p); fi
}

for one in $dataset; do
    [ "$given" != 0 ] || break
    # shellcheck disable=SC2086  # the first words of two lists
    check_line "python $script --dataset $(quoted "$one") --arch $(quoted "$arch") --epsilon $(word $epsilons) --seed $(word $seeds)$flags"
    [ "$dataset" != "$papers" ] || break
done
# tell_missing DATA: say on stderr which of the seeds' subsets are not there yet; paths count from the top.
tell_missing() {
    missing=0 all=0 at=$(dirname -- "$script_file")/../$subsets
    case $subsets in /*) at=$subsets ;; esac
    for seed in $seeds; do
        all=$((all + 1))
        [ -f "$at/subset_$seed.npy" ] || missing=$((missing + 1))
    done
    [ "$missing" = 0 ] || say "$missing of $all subsets are missing in $subsets, so their lines cannot run yet:" \
        "python scripts/make_memorization_subsets.py --dataset $(quoted "$1")$names makes them" >&2
}

# first_of COUNT LIST: set $first to the first word of a list, $more to the next COUNT - 1 and $rest to those after them.
first_of() {
    left=$(($1 - 1)) more='' rest=''
    # shellcheck disable=SC2086  # the words of a list
    set -- $2
    first=$1
    shift
    for word do
        if [ "$left" -gt 0 ]; then more="$more $word" left=$((left - 1)); else rest="$rest $word"; fi
    done
}

for one in $dataset; do
    known "$one"
    [ -z "${on_subsets:-}" ] || tell_missing "$one"
    kind="--dataset $(quoted "$one") --arch $(quoted "$arch")" seeds_left=$seeds
    while [ -n "$seeds_left" ]; do
        first_of "$seeds_per_job" "$seeds_left"
        seed=$first seeds_left=$rest more_seeds="${more:+ --more_seeds$more}" end_of_name=$suffix number='*' subset=''
        [ -n "$more" ] || end_of_name=$(echo "$suffix" | sed "s/\*/$seed/g") number=$seed
        [ -z "${on_subsets:-}" ] || subset=" --train_subset $(quoted "$subsets/subset_$number.npy")"
        epsilons_left=$epsilons
        while [ -n "$epsilons_left" ]; do
            first_of "$epsilons_per_job" "$epsilons_left"
            epsilon=$first epsilons_left=$rest
            end="${more:+ --more_epsilons$more}$more_seeds$subset --suffix $(quoted "$end_of_name")$flags"
            [ -z "${named:-}" ] || end=" --name $(quoted "_${on_disk}_${network}_eps_${epsilon}_$end_of_name")$flags"
            printf '%s\n' "python $script $kind --epsilon $epsilon --seed $seed$end"
        done
    done
done
