#!/bin/sh
# Say how far job files are, and which lines failed: those given to run_jobs.sh as those given to submit_slurm.sh.
#   sh scripts/status.sh FILE [FILE...]
# Needs no accounting database. Lines that failed or were not run are run by the same command again.
# Exit status: 0 all done, 3 still going, 1 nothing is going and some lines failed or were not run, 2 bad input.
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
    failed=0 running=0 waiting=0 why='' list=''
    for line in $todo; do
        log=$run/log/$line.log
        if [ -s "$run/exit/$line" ]; then
            failed=$((failed + 1))
            list="$list  line $line, exit status $(cat "$run/exit/$line"): $(sed -n "${line}p" "$run/jobs.sh")
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
        waiting=$((total - finished - failed - running))
    fi
    rest=$((total - finished - failed - running - waiting))
    echo "$name: $finished of $total lines done, $running running, $waiting waiting${why:+ ($why)}, $failed failed," \
        "$((rest > 0 ? rest : 0)) not run"
    printf %s "$list"
    if [ "${queued:+1}$running$waiting" != 00 ]; then code=3; fi
    [ "$code" = 3 ] || [ "$finished" = "$total" ] || code=1
done
exit "$code"
