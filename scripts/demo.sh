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

step() { printf '\n%s\n' "$*"; }
step "1/8 MNIST"
python -m libdata.download mnist
common="--config scripts/demo_config.json --dataset mnist --arch smallcnn"
step "2/8 Link 1: 60 networks on random 70 % of 2,000 digits"
sh scripts/create_fz_train_jobs.sh $common --runs 60 --runs_per_job 10 --subset 2000 \
    --record --record_input_gradients >"$out/train_fz.sh"
sh scripts/run_jobs.sh "$out/train_fz.sh" -j "$jobs"
step "3/8 Link 1: curvature and cheaper scores of every digit under every network"
sh scripts/create_fz_curve_scorer_jobs.sh $common --runs 60 --runs_per_job 10 >"$out/score_fz.sh"
sh scripts/run_jobs.sh "$out/score_fz.sh" -j "$jobs"
sh scripts/create_fz_curve_scorer_jobs.sh $common --runs 60 --runs_per_job 10 \
    --scores loss,margin,el2n,grand,input_gradient_norm >"$out/score_more.sh"
sh scripts/run_jobs.sh "$out/score_more.sh" -j "$jobs"

step "4/8 Links 2 and 3: 36 private networks, 6 values of epsilon, 6 seeds, each on a subset of the digits"
seeds="0 1 2 3 4 5"
epsilons="1 5 10 20 40 100"
python scripts/make_memorization_subsets.py $common --top_k 200 --seeds $seeds
sh scripts/create_privacy_vs_memorization_dp_train_jobs.sh $common --epsilons "$epsilons" --seeds "$seeds" \
    --subset_dir "$out/private_models/subsets" --data_subset 2000 --batch_size 64 --lr 0.003 >"$out/train_dp.sh"
sh scripts/run_jobs.sh "$out/train_dp.sh" -j "$jobs"
step "5/8 Link 2: curvature of every digit under every private network"
for seed in $seeds; do
    echo "python calc_curv_private_models.py $common --seed $seed"
done >"$out/score_dp.sh"
sh scripts/run_jobs.sh "$out/score_dp.sh" -j "$jobs"

step "6/8 Per-instance privacy: 3 private LeNets with gradient norms of 300 digits through training"
instance="--config scripts/demo_config.json --data_subset 2000 --batch_size 64 --epochs 20 --lr 0.3 --accountant rdp \
    --save_freq 10 --stages 21 --points 150 --points_sample 150"
for run in 1 2 3; do
    echo "sh sensitivity/run.sh $instance --run $run"
done >"$out/per_instance.sh"
sh scripts/run_jobs.sh "$out/per_instance.sh" -j "$jobs"
step "7/8 Per-instance privacy: the 30 cheapest digits removed, twice, 30 random ones as a control; both directions of 30"
for which in cheapest random; do
    echo "sh sensitivity/run_loop_rm.sh $instance --runs 3 --remove 30 --which $which"
done >"$out/removal.sh"
sh scripts/run_jobs.sh "$out/removal.sh" -j "$jobs"
{
    echo "sh sensitivity/run_folds.sh $instance --runs 3 --folds 1"
    echo "sh sensitivity/run_recursive.sh $instance --runs 3 --remove 30 --rounds 2"
} >"$out/rounds.sh"
sh scripts/run_jobs.sh "$out/rounds.sh" -j "$jobs"

step "8/8 Figures and notebooks"
python loss_v_priv.py $common --suffix 'memorization_seed_*'
python calc_private_memorization.py $common
sh scripts/run_notebook.sh notebooks/analyze_cifar100_curv_fz.ipynb "$out/figures" \
    -p config scripts/demo_config.json -p dataset mnist -p arch smallcnn
sh scripts/run_notebook.sh notebooks/curv_privacy.ipynb "$out/figures" \
    -p config scripts/demo_config.json -y "datasets: [mnist]" -p arch smallcnn -p suffix 'memorization_seed_*'
sh scripts/run_notebook.sh notebooks/per_instance_privacy.ipynb "$out/figures" \
    -p config scripts/demo_config.json -y "runs: [1, 2, 3]" -p first 150
sh scripts/run_notebook.sh notebooks/removal.ipynb "$out/figures" \
    -p config scripts/demo_config.json -y "runs: [1, 2, 3]" -p remove 30
sh scripts/run_notebook.sh notebooks/cost_curves.ipynb "$out/figures" \
    -p config scripts/demo_config.json -y "runs: [1, 2, 3]"
python score_table.py $common --suffix 'memorization_seed_*'
sh scripts/run_notebook.sh notebooks/score_atlas.ipynb "$out/figures" \
    -p config scripts/demo_config.json -p dataset mnist -p arch smallcnn
python explore.py $common

echo
python scripts/print_results.py "$out/figures"
