# Sourced by the generators of private models: one line of $script per data set, seed and epsilon.
# In: $script, the grid ($dataset $epsilons $seeds, lists), $suffix (what precedes the seed in a model's name) and, where
# models are trained on subsets, $subset_dir; with $named, lines say --name and not --suffix.
# Other flags than those read here are passed on as they are, once the script has accepted them.
# shellcheck shell=sh disable=SC2154
set -eu
word() { echo "$1"; }
. "$(dirname -- "$0")/flags.sh"
given=$# papers=$dataset
read_flags "dataset arch epsilons seeds suffix${subset_dir:+ subset_dir}" '' "$@"
refuse_flags 'differs from line to line: see --epsilons, --seeds and --subset_dir' epsilon seed subset
refuse_flags 'is not for these models, which are trained on all examples' subset_dir
for epsilon in $epsilons; do
    case $epsilon in *[!0-9.]* | *.*.* | .) refuse "--epsilons: $epsilon is not a positive number" ;; esac
done
for seed in $seeds; do
    case $seed in *[!0-9]*) refuse "--seeds: $seed is not a whole number" ;; esac
done
arch=$(quoted "$arch")
for one in $dataset; do
    [ "$given" != 0 ] || break
    # shellcheck disable=SC2086  # the first words of two lists
    check_line "python $script --dataset $(quoted "$one") --arch $arch --epsilon $(word $epsilons) --seed $(word $seeds)$flags"
    [ "$dataset" != "$papers" ] || break
done
for one in $dataset; do
    name=$(quoted "$one")
    for seed in $seeds; do
        subset=''
        [ -z "${subset_dir:-}" ] || subset=" --subset $(quoted "$subset_dir/$one/subset_$seed.npy")"
        for epsilon in $epsilons; do
            end="$subset --suffix $(quoted "$suffix$seed")$flags"
            [ -z "${named:-}" ] || end=" --name $(quoted "_${one}_${arch}_eps_${epsilon}_$suffix$seed")$flags"
            printf '%s\n' "python $script --dataset $name --arch $arch --epsilon $epsilon --seed $seed$end"
        done
    done
done
