# Sourced by the generators of private models: one line of $script per data set, seed and epsilon.
# In: $script, the grid ($dataset $epsilons $seeds, lists), $suffix (what precedes the seed in a model's name) and, where
# models are trained on subsets, $on_subsets; with $named, lines say --name and not --suffix.
# Other flags than those read here are passed on as they are, once the script has accepted them.
# shellcheck shell=sh disable=SC2154
set -eu
word() { echo "$1"; }
. "$(dirname -- "$0")/flags.sh"
subset_dir='' config='' given=$# papers=$dataset
read_flags "dataset arch epsilons seeds suffix config${on_subsets:+ subset_dir}" '' "$@"
refuse_flags 'differs from line to line: see --epsilons, --seeds and --subset_dir' epsilon seed subset
refuse_flags 'is not for these models, which are trained on all examples' subset_dir
# subsets CONFIG: the folder of make_memorization_subsets.py's subsets, from the top of the repository if it is below that.
subsets() {
    code='import sys; import libcli as cli; from libstore import config; top = config.DEFAULT_CONFIG.parent'
    code="$code; path = lambda: config.load_config(sys.argv.pop() or config.DEFAULT_CONFIG).private_model_dir / 'subsets'"
    code="$code; short = lambda path: path.relative_to(top) if path.is_relative_to(top) else path"
    code="$code; sys.argv[0] = '$(basename -- "$0" .sh)'; cli.run(lambda: print(short(path())))"
    PYTHONPATH=$(dirname -- "$script_file")/.. "${PYTHON:-python}" -c "$code" "$1"
}

for epsilon in $epsilons; do
    case $epsilon in *[!0-9.]* | *.*.* | .) refuse "--epsilons: $epsilon is not a positive number" ;; esac
done
for seed in $seeds; do
    case $seed in *[!0-9]*) refuse "--seeds: $seed is not a whole number" ;; esac
done
arch=$(quoted "$arch")
[ -z "${on_subsets:-}" ] || [ -n "$subset_dir" ] || subset_dir=$(subsets "$config")
[ -z "$config" ] || flags=" --config $(quoted "$config")$flags"
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
        [ -z "$subset_dir" ] || subset=" --subset $(quoted "$subset_dir/$one/subset_$seed.npy")"
        for epsilon in $epsilons; do
            end="$subset --suffix $(quoted "$suffix$seed")$flags"
            [ -z "${named:-}" ] || end=" --name $(quoted "_${one}_${arch}_eps_${epsilon}_$suffix$seed")$flags"
            printf '%s\n' "python $script --dataset $name --arch $arch --epsilon $epsilon --seed $seed$end"
        done
    done
done
