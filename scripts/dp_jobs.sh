# Sourced by the generators of private models: one line of $script per data set, seed and epsilon.
# In: $script, the grid ($datasets $epsilons $seeds), $suffix (what precedes the seed in a model's name) and, where
# models are trained on subsets, $subset_dir; with $named, lines say --name and not --suffix.
# Other flags than those read here are passed on as they are.
# shellcheck shell=sh disable=SC2154
set -eu
. "$(dirname -- "$0")/quoted.sh"
refuse() { echo "$(basename -- "$0"): $*" >&2; exit 2; }
flags=''
while [ $# -gt 0 ]; do
    case $1 in
        --dataset | --arch | --epsilons | --seeds | --suffix | --subset_dir)
            [ -n "${2:-}" ] || refuse "$1 needs a value"
            case $1 in
                --dataset) datasets=$2 ;;
                --arch) arch=$2 ;;
                --epsilons) epsilons=$2 ;;
                --seeds) seeds=$2 ;;
                --suffix) suffix=$2 ;;
                --subset_dir) [ -n "${subset_dir:-}" ] || refuse "$1: these models are trained on all examples"; subset_dir=$2 ;;
            esac
            shift 2
            ;;
        --epsilon | --seed | --subset) refuse "$1 differs from line to line: see --epsilons, --seeds and --subset_dir" ;;
        -h | --help) sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"; exit ;;
        *) flags="$flags $(quoted "$1")"; shift ;;
    esac
done
for epsilon in $epsilons; do
    case $epsilon in *[!0-9.]* | *.*.* | .) refuse "--epsilons: $epsilon is not a positive number" ;; esac
done
for seed in $seeds; do
    case $seed in *[!0-9]*) refuse "--seeds: $seed is not a whole number" ;; esac
done
arch=$(quoted "$arch")
for dataset in $datasets; do
    name=$(quoted "$dataset")
    for seed in $seeds; do
        subset=''
        [ -z "${subset_dir:-}" ] || subset=" --subset $(quoted "$subset_dir/$dataset/subset_$seed.npy")"
        for epsilon in $epsilons; do
            end="$subset --suffix $(quoted "$suffix$seed")$flags"
            [ -z "${named:-}" ] || end=" --name $(quoted "_${dataset}_${arch}_eps_${epsilon}_$suffix$seed")$flags"
            printf '%s\n' "python $script --dataset $name --arch $arch --epsilon $epsilon --seed $seed$end"
        done
    done
done
