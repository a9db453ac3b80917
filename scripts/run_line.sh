#!/bin/sh
# Run one line of a run folder's jobs.sh from the top of the repository; run_jobs.sh and submit_slurm.sh call it.
#   sh scripts/run_line.sh RUN_DIR LINE
# Output goes to RUN_DIR/log/LINE.log, the exit status to RUN_DIR/exit/LINE. A line that is done is skipped, and one that
# still runs elsewhere is waited for. The environment may hold RUN_PID (the runner: once it is gone, nothing new is
# started), RUN_BEGAN and RUN_BEFORE (when it began, and how many lines were done: for the time left), RUN_TRIES, and
# RUN_GPUS with RUN_SLOTS (jobs at a time are spread over these GPUs; without --device they run on cuda).
set -u
. "$(dirname -- "$0")/job_runs.sh"
run=$1 file=${1%.run} number=$2 log=$1/log/$2.log stopped=''
cd "$root" || exit 1
say() { printf '%s\n' "line $number$*"; }
fail() { say ": $*" >&2; exit 1; }
trap 'stopped=1' HUP INT TERM
[ -z "${RUN_PID:-}" ] || kill -0 "$RUN_PID" 2>/dev/null || exit 1
job=$(sed -n "${number}p" "$run/jobs.sh")
[ -n "$job" ] || exit 0

{ : >>"$log"; } 2>/dev/null || fail "not run: $log cannot be written"
exec 8>>"$log"
lock -n 8 || { say ": still runs in another process, waiting for it"; lock 8; } || exit 1
exit_status "$number"
[ "$status" != 0 ] || exit 0
if [ -n "${RUN_GPUS:-}" ]; then
    slot=0
    until { exec 7>>"${TMPDIR:-/tmp}/slot.$(id -u).$(echo "$run" | cksum | cut -d ' ' -f 1).$slot"; } && flock -n 7; do
        slot=$(((slot + 1) % RUN_SLOTS))
        [ "$slot" != 0 ] || sleep 1
        [ -z "$stopped" ] || exit 1
    done
    CUDA_VISIBLE_DEVICES=$(echo "$RUN_GPUS" | awk -F , -v slot="$slot" '{ print $(slot % NF + 1) }')
    export CUDA_VISIBLE_DEVICES RUN_DEVICE=cuda
fi
rm -f "$run/exit/$number" || fail "not run: $run cannot be written"
[ "${SLURM_RESTART_COUNT:-0}" -gt 0 ] || : >"$log"
[ -z "$stopped" ] || exit 1

status=1 tries=0
until [ "$status" = 0 ] || [ "$tries" -ge "${RUN_TRIES:-1}" ] || [ -n "$stopped" ]; do
    # TERM comes to the whole process group: the line's shell waits for its command and starts no other.
    sh -c "trap 'exit 143' TERM
$job" </dev/null >&8 2>&1 7>&- 8>&-
    status=$? tries=$((tries + 1))
done
{ echo "$status" >"$run/exit/.$number" && mv "$run/exit/.$number" "$run/exit/$number"; } 2>/dev/null || {
    rm -f "$run/exit/.$number"
    fail "ended with status $status, but $run/exit/$number cannot be written (disk full?); it will be run again"
}

last=$(tail -n 3 "$log" | grep -vx Terminated | tail -n 1 | cut -c 1-300) # that word is the shell's
if [ "$status" != 0 ]; then
    say " $([ -z "$stopped" ] && echo FAILED || echo stopped) with status $status, see $log: $last" >&2
    [ "$status" != 255 ] || status=1 # xargs would start no other line
    exit "$status"
fi
if [ -n "${RUN_BEGAN:-}" ]; then
    survey
    new=$((finished > RUN_BEFORE ? finished - RUN_BEFORE : 1))
    left=$(((total - finished) * ($(date +%s) - RUN_BEGAN) / new))
    last=$(printf '%d of %d, about %d:%02d:%02d left: %s' "$finished" "$total" \
        $((left / 3600)) $((left / 60 % 60)) $((left % 60)) "$last")
fi
say " done, $last"
