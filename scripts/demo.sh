#!/bin/sh
# The whole story on real MNIST digits: set-up, data, training, scoring, figures, a table of results.
#   sh scripts/demo.sh [-j N]     N jobs at a time, by default one per core
# Interrupted, it goes on where it was when started again. Everything it makes is in results/demo.
# shellcheck disable=SC2086  # words of $common and $seeds are meant to split
set -eu
. "$(dirname -- "$0")/flags.sh"
CDPATH='' cd -- "$(dirname -- "$0")/.."
jobs=$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1)
case $#:${1:-} in
    0:) ;;
    2:-j) positive -j "$2"; jobs=$2 ;;
    1:-h | 1:--help) help ;;
    *) refuse "$*: only -j N; see --help" ;;
esac
python=$(sh scripts/setup.sh)
PATH=$(dirname -- "$python"):$PATH
export PATH
out=results/demo
mkdir -p "$out/figures"

# step NAME: begin a part. When it began is noted, with the processor's time of this shell and of all it has started.
number=0
step() {
    number=$((number + 1))
    { echo "$number. $*"; date +%s; times; } >>"$out/times"
    printf '\n%s\n' "$number. $*"
}
# A process starts once for all the networks that it trains or scores, so that a job each is the least to start.
# share N: how many of N networks a job takes.
share() { echo $((($1 + jobs - 1) / jobs)); }
# in_parallel NAME FLAGS...: run the job lines of $out/NAME.sh.
in_parallel() {
    lines=$out/$1.sh
    shift
    sh scripts/run_jobs.sh "$lines" -j "$jobs" "$@"
}
: >"$out/times"

step "MNIST"
python -m libdata.download mnist
common="--config scripts/demo_config.json --dataset mnist --arch smallcnn"
step "Link 1: 60 networks on random 70 % of 2,000 digits"
sh scripts/create_fz_train_jobs.sh $common --runs 60 --runs_per_job "$(share 60)" --data_subset 2000 \
    --record --record_input_gradients >"$out/train_fz.sh"
in_parallel train_fz
step "Link 1: curvature and cheaper scores of every digit under every network"
sh scripts/create_fz_curve_scorer_jobs.sh $common --runs 60 --runs_per_job "$(share 60)" \
    --scores curvature,loss,margin,el2n,grand,input_gradient_norm >"$out/score_fz.sh"
in_parallel score_fz

step "Links 2 and 3: 48 private networks, 8 values of epsilon, 6 seeds, each on a subset of the digits"
seeds="0 1 2 3 4 5"
epsilons="1 2 5 10 20 40 60 100"
python scripts/make_memorization_subsets.py $common --top_k 200 --seeds $seeds
sh scripts/create_privacy_vs_memorization_dp_train_jobs.sh $common --epsilons "$epsilons" --seeds "$seeds" \
    --epsilons_per_job 8 --seeds_per_job "$(share 6)" --subset_dir "$out/private_models/subsets" \
    --data_subset 2000 --batch_size 64 --lr 0.003 >"$out/train_dp.sh"
in_parallel train_dp
step "Link 2: curvature of every digit under every private network"
echo "$seeds" | xargs -n "$(share 6)" echo "python calc_curv_private_models.py $common --seed" >"$out/score_dp.sh"
in_parallel score_dp

step "Per-instance privacy: 3 private LeNets with gradient norms of 300 digits through training"
instance="--config scripts/demo_config.json --data_subset 2000 --batch_size 64 --epochs 20 --lr 0.3 --accountant rdp \
    --save_freq 10 --stages 21 --points 150 --points_sample 150 --test_examples 1000"
echo 1 2 3 | xargs -n "$(share 3)" | while read -r run more; do
    echo "sh sensitivity/run.sh $instance --run $run${more:+ --more_runs $more}"
done >"$out/per_instance.sh"
in_parallel per_instance
step "Per-instance privacy: the 30 cheapest digits removed, twice, 30 random ones as a control; both directions of 30"
runs="$instance --runs 3 --runs_per_job 3"
remove="run_loop_rm.sh $runs --remove 30 --which"
cat >"$out/removal.sh" <<END
sh sensitivity/$remove cheapest && sh sensitivity/run_recursive.sh $runs --remove 30 --rounds 2
sh sensitivity/$remove random
sh sensitivity/run_folds.sh $runs --folds 1
END
in_parallel removal

step "Figures and notebooks; every score of every digit in one table, how they agree, and a page to look at them"
cat >"$out/figures.sh" <<END
python score_table.py $common --suffix 'memorization_seed_*' && python explore.py $common && \
    sh scripts/run_notebook.sh notebooks/score_atlas.ipynb $out/figures \
    -p config scripts/demo_config.json -p dataset mnist -p arch smallcnn
python loss_v_priv.py $common --suffix 'memorization_seed_*'
python calc_private_memorization.py $common
sh scripts/run_notebook.sh notebooks/analyze_cifar100_curv_fz.ipynb $out/figures \
    -p config scripts/demo_config.json -p dataset mnist -p arch smallcnn
sh scripts/run_notebook.sh notebooks/curv_privacy.ipynb $out/figures \
    -p config scripts/demo_config.json -y "datasets: [mnist]" -p arch smallcnn -p suffix 'memorization_seed_*'
sh scripts/run_notebook.sh notebooks/per_instance_privacy.ipynb $out/figures \
    -p config scripts/demo_config.json -y "runs: [1, 2, 3]" -p first 150
sh scripts/run_notebook.sh notebooks/removal.ipynb $out/figures \
    -p config scripts/demo_config.json -y "runs: [1, 2, 3]" -p remove 30
sh scripts/run_notebook.sh notebooks/cost_curves.ipynb $out/figures \
    -p config scripts/demo_config.json -y "runs: [1, 2, 3]"
END
in_parallel figures --again

step "Results"
python scripts/print_results.py "$out/figures"

step "Where the time went, of this run: seconds by the clock and of the processors"
awk '
    NR % 4 == 1 { name = $0 }
    NR % 4 == 2 { clock = $0 }
    NR % 4 == 0 {
        split($0, part, /m|s[[:space:]]*/)
        processors = part[1] * 60 + part[2] + part[3] * 60 + part[4]
        if (NR > 4) printf "%6d %8.1f  %s\n", clock - clock_before, processors - before, name_before
        else { first = clock; start = processors }
        clock_before = clock; before = processors; name_before = name
    }
    END { printf "%6d %8.1f  all\n", clock_before - first, before - start }' "$out/times"
