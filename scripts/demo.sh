#!/bin/sh
# The whole story on real MNIST digits: set-up, data, training, scoring, figures, a table of results.
#   sh scripts/demo.sh [-j N]     N jobs at a time, by default one per core
# Interrupted, it goes on where it was when started again. Everything it makes is in results/demo.
set -eu
cd "$(dirname -- "$0")/.."
jobs=$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1)
case $#:${1:-} in
    0:) ;;
    2:-j) jobs=$2 ;;
    *) sed -n '2,4s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac
python=$(sh scripts/setup.sh)
PATH=$(dirname -- "$python"):$PATH
export PATH
out=results/demo
mkdir -p "$out/figures"

step() { printf '\n%s\n' "$*"; }
step "1/4 MNIST"
python -m libdata.download mnist
common="--config scripts/demo_config.json --dataset mnist --arch smallcnn --runs 60 --runs_per_job 10"
step "2/4 Link 1: 60 networks on random 70 % of 2,000 digits"
# shellcheck disable=SC2086  # words of $common are meant to split
sh scripts/create_fz_train_jobs.sh $common --subset 2000 >"$out/train_fz.sh"
sh scripts/run_jobs.sh "$out/train_fz.sh" -j "$jobs"
step "3/4 Link 1: curvature of every digit under every network"
# shellcheck disable=SC2086
sh scripts/create_fz_curve_scorer_jobs.sh $common >"$out/score_fz.sh"
sh scripts/run_jobs.sh "$out/score_fz.sh" -j "$jobs"
step "4/4 Notebook and figures"
sh scripts/run_notebook.sh notebooks/analyze_cifar100_curv_fz.ipynb "$out/figures" \
    -p config scripts/demo_config.json -p dataset mnist -p arch smallcnn

echo
python scripts/print_results.py "$out/figures"
