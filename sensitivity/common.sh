# Sourced by the loops of this folder: their flags, and how they start and stop jobs.
# Settings are flags, or environment variables of the same name in capitals. A configuration that is there from where
# the command is typed is taken; all other paths count from the top of the repository. Flags that are not read here are
# left in $flags, quoted.
# shellcheck shell=sh disable=SC2034,SC2154
set -eu
. "$(dirname -- "$0")/../scripts/flags.sh"
runs=${RUNS:-10} remove=${REMOVE:-100} which=${WHICH:-} folds='' fold_size=30 rounds=3 jobs=1
runs_per_job=${RUNS_PER_JOB:-1} config=${CONFIG:-} python=${PYTHON:-python} overwrite=''
read_flags 'runs runs_per_job remove which folds fold_size rounds jobs config' overwrite "$@"
case $config in '' | /*) ;; *) [ ! -f "$config" ] || config=$PWD/$config ;; esac
config=${config:-config.json}
cd -- "$(dirname -- "$script_file")/.."
for flag in runs runs_per_job remove fold_size rounds jobs ${folds:+folds}; do eval "positive --$flag \"\$$flag\""; done
case $which in '' | cheapest | dearest | random) ;; *) refuse "--which $which: not cheapest, dearest or random" ;; esac

# job COMMAND...: run it; end here if it fails, or once it has saved after TERM or Ctrl-C.
job() {
    attend "$@"
    [ "$status" != 0 ] || return 0
    echo "$(basename -- "$0"): failed with status $status; run the same command again once the cause is mended" >&2
    exit "$status"
}

# folder: the sensitivity_dir of the configuration.
folder() {
    "$python" -c 'import sys; import libcli as cli; from libstore import config
cli.run(lambda: print(config.load_config(sys.argv[1]).sensitivity_dir))' "$config"
}

# same_runs: refuse another number of runs than run_loop.sh has left; with --overwrite, fewer are the first of them.
same_runs() {
    there=0
    for file in "$folder"/res/res[1-9]*.csv; do
        file=${file##*/res}
        case ${file%.csv} in *[!0-9]*) ;; *) there=$((there + 1)) ;; esac
    done
    has="--runs $runs: $folder/res has $there runs of run_loop.sh"
    for run in $(seq "$runs"); do [ -e "$folder/res/res$run.csv" ] || refuse "$has, and no res$run.csv"; done
    [ "$there" = "$runs" ] || [ -n "$overwrite" ] || refuse "$has; give --runs $there, or --overwrite to go by the first"
}

# train PREFIX FLAGS...: runs 1 to $runs, named PREFIX and their number, as lines of a job file, with $flags and FLAGS,
# $runs_per_job in a line. With a PREFIX they will be compared with the runs without one, and must be of the same flags.
train() {
    file=$folder/jobs/train$1.sh name=$1 line="sh sensitivity/run.sh --config $(quoted "$config")$flags"
    shift
    for word do line="$line $(quoted "$word")"; done
    check_line "$line --run 1 --name ${name}1 $overwrite"
    fault=$({ mkdir -p "$folder/jobs" && for run in $(seq 1 "$runs_per_job" "$runs"); do
        number=$run more=''
        for another in $(seq "$runs"); do
            [ "$another" -le "$run" ] || [ "$another" -ge $((run + runs_per_job)) ] || number='*' more="$more $another"
        done
        like=${name:+--compare_with $(quoted "$folder/res/res$number.csv")}
        printf '%s\n' "$line --run $run${more:+ --more_runs$more} --name $(quoted "$name$number") $like $overwrite"
    done >"$file"; } 2>&1) || refuse "$fault"
    job sh scripts/run_jobs.sh "$file" -j "$jobs" --again
}

# results PREFIX: the result files of the runs, quoted.
results() { for run in $(seq "$runs"); do printf ' %s' "$(quoted "$folder/res/res$1$run.csv")"; done; }

# account PREFIX NAME FLAGS...: costs, totals and ranks of the runs with this prefix, in $compo.
account() {
    prefix=$1 name=$2
    shift 2
    eval "set -- $(results "$prefix")"' --output_dir "$compo" --name "$name" "$@"'
    job "$python" renyi_per_instance_sum_compo.py "$@"
    job "$python" sensitivity/compo_res/rank.py "$compo/${name}_totals.csv" ${overwrite:+"$overwrite"}
}

# compare_removal FLAGS...: account the runs of run_loop_rm.sh for $which and $remove, and compare them with those before.
compare_removal() {
    removal=${which}_$remove
    account "_${removal}_" "compo_res_$removal" "$@"
    eval "set -- --results_before $(results '') --results_after $(results "_${removal}_")"
    job "$python" sensitivity/rank_eval.py "$compo/compo_res_all_ranked.csv" "$compo/compo_res_${removal}_ranked.csv" \
        "$@" --paired --output "$compo/comparison_$removal.csv" ${overwrite:+"$overwrite"}
}
