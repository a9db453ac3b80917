# Sourced by the loops of this folder: their flags, and how they start and stop jobs.
# Settings are flags, or environment variables of the same name in capitals. A configuration that is there from where the
# command is typed is taken; all other paths count from the top of the repository. Flags that are not read here are left
# in $flags, quoted.
# shellcheck shell=sh disable=SC2034,SC2154
set -eu
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
. "$here/../scripts/flags.sh"
runs=${RUNS:-10} remove=${REMOVE:-100} which=${WHICH:-} folds='' fold_size=30 rounds=3 jobs=1
config=${CONFIG:-} python=${PYTHON:-python} overwrite=''
read_flags 'runs remove which folds fold_size rounds jobs config' overwrite "$@"
case $config in
    '') config=config.json ;;
    /*) ;;
    *) [ ! -f "$config" ] || config=$PWD/$config ;;
esac
cd "$here/.."
positive --runs "$runs"
positive --remove "$remove"
positive --folds "${folds:-1}"
positive --fold_size "$fold_size"
positive --rounds "$rounds"
positive --jobs "$jobs"
case $which in '' | cheapest | dearest | random) ;; *) refuse "--which $which: not cheapest, dearest or random" ;; esac

# job COMMAND...: run it; on TERM or Ctrl-C let it leave its work in good order, then stop.
job() {
    attend "$@"
    if [ -n "$stopped" ]; then
        echo "$(basename -- "$0"): stopped; run the same command again to go on" >&2
        end_by "$stopped"
    fi
    if [ "$status" -ne 0 ]; then
        echo "$(basename -- "$0"): failed with status $status; run the same command again once the cause is mended" >&2
        exit "$status"
    fi
}

# folder: the sensitivity_dir of the configuration.
folder() {
    code='import sys; import libcli as cli; from libstore import config'
    code="$code; cli.run(lambda: print(config.load_config(sys.argv[1]).sensitivity_dir))"
    "$python" -c "$code" "$config"
}

# train PREFIX FLAGS...: runs 1 to $runs, named PREFIX and their number, as lines of a job file, with $flags and FLAGS.
train() {
    file=$folder/jobs/train$1.sh name=$1 words=$flags
    shift
    for word do words="$words $(quoted "$word")"; done
    run=1 lines=''
    while [ "$run" -le "$runs" ]; do
        lines="${lines}sh sensitivity/run.sh --config $(quoted "$config")$words --run $run --name $name$run $overwrite
"
        run=$((run + 1))
    done
    check_line "${lines%%
*}"
    fault=$({ mkdir -p "$folder/jobs" && printf %s "$lines" >"$file"; } 2>&1) || refuse "$fault"
    job sh scripts/run_jobs.sh "$file" -j "$jobs" --again
}

# results PREFIX: the result files of the runs, quoted.
results() {
    run=1
    while [ "$run" -le "$runs" ]; do
        printf ' %s' "$(quoted "$folder/res/res$1$run.csv")"
        run=$((run + 1))
    done
}

# account PREFIX NAME FLAGS...: costs, totals and ranks of the runs with this prefix, in $compo.
account() {
    prefix=$1 name=$2
    shift 2
    eval "job \"\$python\" renyi_per_instance_sum_compo.py $(results "$prefix")"' --output_dir "$compo" --name "$name" "$@"'
    job "$python" sensitivity/compo_res/rank.py "$compo/${name}_totals.csv" ${overwrite:+"$overwrite"}
}
