# Sourced by the loops of this folder: their flags, and how they start and stop jobs.
# Settings are flags, or environment variables of the same name in capitals. A configuration that is there from where the
# command is typed is taken; all other paths count from the top of the repository. Flags that are not read here are left
# in $flags, quoted.
# shellcheck shell=sh disable=SC2034,SC2154
set -eu
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
. "$here/../scripts/flags.sh"
runs=${RUNS:-10} remove=${REMOVE:-100} which=${WHICH:-} folds='' fold_size=30 rounds=3
config=${CONFIG:-} python=${PYTHON:-python} overwrite=''
read_flags 'runs remove which folds fold_size rounds config' overwrite "$@"
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
case $which in '' | cheapest | dearest | random) ;; *) refuse "--which $which: not cheapest, dearest or random" ;; esac

child='' stopped=''
trap 'stopped=15; [ -z "$child" ] || kill -TERM "$child" 2>/dev/null || :' TERM
trap 'stopped=2; [ -z "$child" ] || kill -TERM "$child" 2>/dev/null || :' INT

# job COMMAND...: run it; on TERM or Ctrl-C let it leave its work in good order, then stop.
job() {
    status=0
    if [ -z "$stopped" ]; then
        "$@" &
        child=$!
        wait "$child" || status=$?
        while kill -0 "$child" 2>/dev/null; do
            status=0
            wait "$child" || status=$?
        done
        child=''
    fi
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

# train PREFIX FLAGS...: runs 1 to $runs, named PREFIX and their number, with the time left in the log.
train() {
    prefix=$1
    shift
    run=1 trained=0 began=$(date +%s)
    while [ "$run" -le "$runs" ]; do
        there=1
        [ -e "$folder/res/res$prefix$run.csv" ] || there=0
        echo "run $run of $runs begins, $(date '+%Y-%m-%d %H:%M:%S')"
        job sh "$here/run.sh" --config "$config" "$@" --run "$run" --name "$prefix$run" ${overwrite:+"$overwrite"}
        if [ "$there" = 1 ]; then began=$(date +%s); else trained=$((trained + 1)); fi
        if [ "$trained" -gt 0 ]; then
            spent=$(($(date +%s) - began))
            left=$(((runs - run) * spent / trained))
            echo "run $run of $runs done: $((spent / 60)) min $((spent % 60)) s spent, about $((left / 60)) min $((left % 60)) s left"
        fi
        run=$((run + 1))
    done
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
