#!/bin/sh
# Say how far job files are, and which lines failed: those given to run_jobs.sh as those given to submit_slurm.sh.
#   sh scripts/status.sh FILE [FILE...]
# Needs no accounting database. Lines that failed or were not run are run by the same command again, and so are those
# that TERM or Ctrl-C stopped, which go on where they were.
# Exit status: 0 all done, 3 still going, 1 nothing is going and some lines are not done, 2 bad input.
set -eu
. "$(dirname -- "$0")/job_runs.sh"
read_flags '' '' "$@"
[ $# -gt 0 ] || refuse "a job file is needed; see --help"
for name do open_run "$name"; done
held() { [ -f "$1" ] && { flock -n "$1" true 2>/dev/null; [ $? = 1 ]; }; } # where there are locks
code=0
for name do
    open_run "$name"
    queued
    survey
    failed=0 stopped=0 running=0 waiting=0 why='' list=''
    for line in $todo; do
        log=$run/log/$line.log
        if [ -s "$run/exit/$line" ]; then
            status=$(cat "$run/exit/$line")
            if was_stopped "$status"; then
                stopped=$((stopped + 1)) what='stopped, to go on with'
            else
                failed=$((failed + 1)) what="exit status $status"
            fi
            list="$list  line $line, $what: $(sed -n "${line}p" "$run/jobs.sh")
    log: $log
"
        elif held "$log"; then
            running=$((running + 1))
        fi
    done
    if [ -n "$queued" ]; then
        running=$(echo "$queued" | grep -cv ' PENDING \| COMPLETING ') || :
        waiting=$(echo "$queued" | grep -c ' PENDING ') || :
        why=$(echo "$queued" | sed -n 's/^[^ ]* PENDING //p' | sort -u | paste -sd , -)
    elif held "$run/lock"; then
        waiting=$((total - finished - failed - stopped - running))
    fi
    rest=$((total - finished - failed - stopped - running - waiting)) went=''
    [ "$stopped" = 0 ] || went=", $stopped stopped"
    echo "$name: $finished of $total lines done, $running running, $waiting waiting${why:+ ($why)}," \
        "$failed failed$went, $((rest > 0 ? rest : 0)) not run"
    printf %s "$list"
    if [ "${queued:+1}$running$waiting" != 00 ]; then code=3; fi
    [ "$code" = 3 ] || [ "$finished" = "$total" ] || code=1
done
exit "$code"
