#!/bin/sh
# Run line LINE of RUN_DIR/jobs.sh from the top of the repository: for run_jobs.sh, submit_slurm.sh, other schedulers.
#   sh scripts/run_line.sh RUN_DIR LINE
# Output goes to RUN_DIR/log/LINE.log, the exit status to RUN_DIR/exit/LINE. A line that is done is skipped, one at work
# elsewhere is waited for. The environment may hold RUN_PID (the runner: once it is gone, nothing new is started),
# RUN_BEGAN and RUN_BEFORE (when it began, lines done by then: for the time left), and RUN_GPUS with RUN_SLOTS (jobs at
# a time, spread over these GPUs; without --device they run on cuda).
set -u
. "$(dirname -- "$0")/job_runs.sh"
run=$1 file=${1%.run} number=$2 log=$1/log/$2.log stopped=''
say() { printf '%s\n' "line $number$*"; }
cd "$root" || exit 1
trap 'stopped=1' HUP INT TERM
[ -z "${RUN_PID:-}" ] || kill -0 "$RUN_PID" 2>/dev/null || exit 1
job=$(sed -n "${number}p" "$run/jobs.sh")
[ -n "$job" ] || exit 0
exec 8>>"$log"
flock -n 8 2>/dev/null || [ $? != 1 ] || { say ": still runs in another process, waiting for it"; flock 8; }
[ "$(cat "$run/exit/$number" 2>/dev/null)" != 0 ] || exit 0
if [ -n "${RUN_GPUS:-}" ]; then
    slot=0 slots=${TMPDIR:-/tmp}/slot.$(id -u).$(echo "$run" | cksum | cut -d ' ' -f 1)
    until exec 7>>"$slots.$slot" && flock -n 7; do
        slot=$(((slot + 1) % RUN_SLOTS))
        [ "$slot" != 0 ] || sleep 1
        [ -z "$stopped" ] || exit 1
    done
    CUDA_VISIBLE_DEVICES=$(echo "$RUN_GPUS" | awk -F , -v slot="$slot" '{ print $(slot % NF + 1) }')
    export CUDA_VISIBLE_DEVICES RUN_DEVICE=cuda
fi
rm -f "$run/exit/$number"
[ "${SLURM_RESTART_COUNT:-0}" -gt 0 ] || : >"$log"
[ -z "$stopped" ] || exit 1
# TERM comes to the whole process group: the line's shell waits for its command and starts no other.
sh -c "trap 'exit 143' TERM
$job" </dev/null >&8 2>&1 7>&- 8>&-
status=$?
{ echo "$status" >"$run/exit/.$number" && mv "$run/exit/.$number" "$run/exit/$number"; } 2>/dev/null || {
    rm -f "$run/exit/.$number"
    say ": $run/exit/$number cannot be written (disk full?); it will be run again" >&2
    exit 1
}
last=$(tail -n 3 "$log" | grep -vx Terminated | tail -n 1 | cut -c 1-300) # that word is the shell's
if [ "$status" != 0 ]; then
    how=FAILED
    if [ -n "$stopped" ] || was_stopped "$status"; then how='stopped'; fi
    say " $how with status $status, see $log: $last" >&2
    exit 1
fi
[ -n "${RUN_BEGAN:-}" ] || exit 0
survey
new=$((finished > RUN_BEFORE ? finished - RUN_BEFORE : 1))
left=$(((total - finished) * ($(date +%s) - RUN_BEGAN) / new / 60))
if [ "$left" = 0 ]; then left='under a minute'; else left="about $((left / 60)) h $((left % 60)) min"; fi
say " done, $finished of $total, $left left: $last"
