#!/bin/sh
# Run one line of a run folder's jobs.sh from the top of the repository; run_jobs.sh and submit_slurm.sh call it.
#   sh scripts/run_line.sh RUN_DIR LINE
# Output goes to RUN_DIR/log/LINE.log, the exit status to RUN_DIR/exit/LINE. A line that is done is skipped, and one that
# still runs elsewhere is waited for. The environment may hold RUN_PID (the runner: once it is gone, nothing new is
# started), RUN_BEGAN and RUN_BEFORE (when it began, and how many lines were done: for the time left), RUN_TRIES, and
# RUN_GPUS with RUN_SLOTS (jobs at a time are spread over these GPUs; without --device they run on cuda).
set -u
. "$(dirname -- "$0")/flags.sh"
CDPATH='' cd -- "$(dirname -- "$0")/.." || exit 1
run=$1 line=$2 log=$1/log/$2.log stopped=''
say() { printf '%s\n' "line $line$*"; }
fail() { say ": $*" >&2; exit 1; }
trap 'stopped=1' HUP INT TERM
[ -z "${RUN_PID:-}" ] || kill -0 "$RUN_PID" 2>/dev/null || exit 1

{ : >>"$log"; } 2>/dev/null || fail "not run: $log cannot be written"
exec 9>>"$run/lock" 8>>"$log"
lock -s 9 || exit 1
lock -n 8 || { say ": still runs in another process, waiting for it"; lock 8; } || exit 1
status=''
[ ! -f "$run/exit/$line" ] || read -r status <"$run/exit/$line" || :
[ "$status" != 0 ] || exit 0
if [ -n "${RUN_GPUS:-}" ]; then
    slot=0
    slots=$run/slot.$(uname -n)
    [ -z "$unlocked" ] || slots=${TMPDIR:-/tmp}/slot.$(id -u).$(echo "$run" | cksum | cut -d ' ' -f 1)
    until { exec 7>>"$slots.$slot"; } && flock -n 7; do
        slot=$(((slot + 1) % RUN_SLOTS))
        [ "$slot" != 0 ] || sleep 1
        [ -z "$stopped" ] || exit 1
    done
    # shellcheck disable=SC2086  # words are meant to split
    set -- $RUN_GPUS
    shift $((slot % $#))
    export CUDA_VISIBLE_DEVICES="$1" RUN_DEVICE=cuda
fi
[ -z "$stopped" ] || exit 1
rm -f "$run/exit/$line" || fail "not run: $run cannot be written"
[ "${SLURM_RESTART_COUNT:-0}" -gt 0 ] || : >"$log"

tries=${RUN_TRIES:-1}
while :; do
    # TERM comes to the whole process group: the line's shell waits for its command and starts no other.
    sh -c "trap 'exit 143' TERM
$(sed -n "${line}p" "$run/jobs.sh")" </dev/null >&8 2>&1 7>&- 8>&- 9>&-
    status=$?
    tries=$((tries - 1))
    { [ "$status" != 0 ] && [ "$tries" -gt 0 ] && [ -z "$stopped" ]; } || break
done
{ echo "$status" >"$run/exit/.$line" && mv "$run/exit/.$line" "$run/exit/$line"; } 2>/dev/null || {
    rm -f "$run/exit/.$line"
    fail "ended with status $status, but $run/exit/$line cannot be written (disk full?); it will be run again"
}

last=$(tail -n 3 "$log" | grep -vx Terminated | tail -n 1 | cut -c 1-300) # that word is the shell's
if [ "$status" != 0 ]; then
    what=FAILED
    [ -z "$stopped" ] || what=stopped
    say " $what with status $status, see $log: $last" >&2
    [ "$status" != 255 ] || status=1 # xargs would start no other line
    exit "$status"
fi
progress=''
if [ -n "${RUN_BEGAN:-}" ]; then
    total=$(grep -c '^[[:space:]]*[^#[:space:]]' "$run/jobs.sh")
    finished=$(find "$run/exit" -name '[0-9]*' -exec grep -lx 0 {} + | wc -l)
    new=$((finished - RUN_BEFORE))
    [ "$new" -gt 0 ] || new=1
    left=$(((total - finished) * ($(date +%s) - RUN_BEGAN) / new))
    progress=$(printf ', %d of %d, about %d:%02d:%02d left' "$finished" "$total" \
        $((left / 3600)) $((left / 60 % 60)) $((left % 60)))
fi
say " done$progress: $last"
