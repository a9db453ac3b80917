#!/bin/sh
# Say how far job files are, and which lines failed: those given to run_jobs.sh as those given to submit_slurm.sh.
#   sh scripts/status.sh FILE [FILE...]
# Needs no accounting database. Lines that failed or were not run are run by the same command again.
# Exit status: 0 all done, 3 still going, 1 nothing is going and some lines failed or were not run, 2 bad input.
set -eu
. "$(dirname -- "$0")/job_runs.sh"
case ${1:-} in
    '') refuse "a job file is needed; see --help" ;;
    -h | --help) help ;;
esac
for name do open_run "$name"; done
code=0
for name do
    open_run "$name"
    queued || refuse "$file: Slurm does not answer"
    survey
    running=0 waiting=0 why=''
    if [ -n "$queued" ]; then
        running=$(echo "$queued" | grep -cv ' PENDING \| COMPLETING ') || :
        waiting=$(echo "$queued" | grep -c ' PENDING ') || :
        why=$(echo "$queued" | sed -n 's/^[^ ]* PENDING //p' | sort -u | paste -sd , -)
    else
        for line in $todo; do
            [ ! -f "$run/log/$line.log" ] || lock -n "$run/log/$line.log" true || running=$((running + 1))
        done
        [ ! -f "$run/lock" ] || lock -n "$run/lock" true || waiting=$((total - finished - running - $(echo "$failed" | wc -w)))
        [ -z "$unlocked" ] || say "$run: no locks here ($unlocked): lines at work are counted as not run" >&2
    fi
    failures=$(echo "$failed" | wc -w)
    rest=$((total - finished - running - waiting - failures))
    echo "$name: $finished of $total lines done, $running running, $waiting waiting${why:+ ($why)}, $((failures)) failed," \
        "$((rest > 0 ? rest : 0)) not run"
    list_undone "$failed"
    if [ -n "$queued" ] || [ "$running$waiting" != 00 ]; then code=3; fi
    [ "$code" = 3 ] || [ "$finished" = "$total" ] || code=1
done
exit "$code"
