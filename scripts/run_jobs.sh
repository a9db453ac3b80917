#!/bin/sh
# Run the lines of a job file, several at a time, from the top of the repository.
#   sh scripts/run_jobs.sh FILE [-j N] [--gpus 0,1] [--retries R] [--sshloginfile HOSTS] [--runner parallel|xargs] [--again]
# -j N             jobs at a time (on each host): one per GPU with --gpus, else one per core; each gets cores/N threads,
#                  or OMP_NUM_THREADS if that is set
# --gpus 0,1       each job sees one of these GPUs (CUDA_VISIBLE_DEVICES) and runs on it, not on the CPU, unless its line
#                  says --device; more jobs than GPUs share them evenly
# --retries R      a line that fails is tried R times more (0)
# --sshloginfile   GNU parallel's file of hosts; they must see this folder and FILE under the same paths
# --runner         GNU parallel where it is installed, else xargs
# --again          run finished lines again, too
# A line that has ended with status 0 is done and is not run again: after a failure, a kill or a change of FILE the same
# command runs what is left. Output of line 7: FILE.run/log/7.log. TERM, Ctrl-C and HUP let running jobs save and leave.
# Exit status: 0 all done, 1 some failed, 2 bad input; stopped, it ends by the signal (128 + its number in $?).
set -eu
. "$(dirname -- "$0")/job_runs.sh"
file='' jobs='' gpus='' retries=0 hosts='' runner='' again=''
while [ $# -gt 0 ]; do
    case $1 in
        -j | --gpus | --retries | --sshloginfile | --runner)
            [ -n "${2:-}" ] || refuse "$1 needs a value"
            case $1 in
                -j) positive -j "$2"; jobs=$2 ;;
                --gpus) gpus=$2 ;;
                --retries) case $2 in *[!0-9]*) refuse "$1 $2: not a whole number" ;; esac; retries=$2 ;;
                --sshloginfile) hosts=$2 ;;
                --runner) runner=$2 ;;
            esac
            shift 2
            ;;
        --again) again=1; shift ;;
        -h | --help) help ;;
        -*) refuse "$1: no such flag; see --help" ;;
        *) [ -z "$file" ] || refuse "$1: one job file at a time; see --help"; file=$1; shift ;;
    esac
done
[ -n "$file" ] || refuse "a job file is needed; see --help"
case ,$gpus, in ,,) ;; *,,* | *[!A-Za-z0-9,:/_-]*) refuse "--gpus $gpus: not a list such as 0,1" ;; esac
gpus=$(echo "$gpus" | tr , ' ')
[ -z "$gpus" ] || command -v flock >/dev/null || refuse "--gpus needs flock (util-linux)"
gnu_parallel() { parallel --version 2>/dev/null | grep -q '^GNU parallel'; } # moreutils has another one
case $runner in
    '') if gnu_parallel; then runner='parallel'; else runner='xargs'; fi ;;
    parallel) gnu_parallel || refuse "--runner parallel: GNU parallel is not installed" ;;
    xargs) ;;
    *) refuse "--runner $runner: not parallel or xargs" ;;
esac
if [ -n "$hosts" ]; then
    [ -f "$hosts" ] || refuse "--sshloginfile $hosts: no such file"
    [ "$runner" = parallel ] || refuse "--sshloginfile needs GNU parallel"
    hosts=$(CDPATH='' cd -- "$(dirname -- "$hosts")" && pwd)/$(basename -- "$hosts")
fi
cores=$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1)
# shellcheck disable=SC2086  # words are meant to split
[ -z "$gpus" ] || { set -- $gpus; jobs=${jobs:-$#}; }
jobs=${jobs:-$cores}
threads=$((cores / jobs))
[ "$threads" -ge 1 ] || threads=1
OMP_NUM_THREADS=${OMP_NUM_THREADS:-$threads} MKL_NUM_THREADS=${MKL_NUM_THREADS:-${OMP_NUM_THREADS:-$threads}}

open_run "$file"
refuse_queued
# On the hosts of --sshloginfile, each line says whether it finds a GPU.
if [ -n "$gpus" ] && [ -z "$hosts" ]; then
    wanted=$(echo "$gpus" | tr ' ' '\n' | sort -u | paste -sd , -)
    seen=$(CUDA_VISIBLE_DEVICES=$wanted python -c 'import torch; print(torch.cuda.device_count())' 2>&1) ||
        refuse "--gpus: PyTorch cannot be asked ($(echo "$seen" | tail -n 1)); activate the environment first"
    seen=$(echo "$seen" | tail -n 1)
    [ "$seen" = "$(echo "$wanted" | tr ',' '\n' | wc -l | tr -d ' ')" ] ||
        refuse "--gpus $wanted: PyTorch finds $seen of them on this machine"
fi
cd "$root"
freeze
exec 9>>"$run/lock"
lock -s -w 2 9 || :
exec 9>&-
[ -z "$unlocked" ] || say "$run: no locks here ($unlocked); do not run the same file twice at once" >&2
survey
if [ -z "$todo" ]; then
    say "all $total lines of $file were done before; --again runs them again"
    exit
fi
say "$((total - done_before)) of $total lines to run, $done_before done before; $jobs at a time with $runner, $OMP_NUM_THREADS threads each"
export OMP_NUM_THREADS MKL_NUM_THREADS
export RUN_PID=$$ RUN_BEFORE="$done_before" RUN_TRIES=1 RUN_GPUS="$gpus" RUN_SLOTS="$jobs"
RUN_BEGAN=$(date +%s)
export RUN_BEGAN

# The runner is in a session of its own, so that a Ctrl-C reaches the jobs once, through stop.
setsid=''
! command -v setsid >/dev/null || setsid='setsid'
group=${setsid:+-}
stopped=''
stop() {
    stopped=$1
    [ "$runner" = xargs ] || group=''
    [ -z "${pid:-}" ] || kill -s TERM -- "$group$pid" 2>/dev/null || kill -s TERM "$pid" 2>/dev/null || :
}
trap 'stop 1' HUP
trap 'stop 2' INT
trap 'stop 15' TERM
if [ "$runner" = parallel ]; then
    # The job log is made to agree with the exit files: --resume-failed runs the lines that have no row of success.
    rows=$(
        [ ! -f "$run/joblog" ] || cat "$run/joblog"
        for line in $todo; do echo "$line"; done
    )
    printf '%s\n' "$rows" | awk -F '\t' -v last="$(awk 'END { print NR }' "$run/jobs.sh")" '
        BEGIN { print "Seq\tHost\tStarttime\tJobRuntime\tSend\tReceive\tExitval\tSignal\tCommand" }
        NF == 1 { left[$1] }
        NF == 9 && $1 + 0 && $7 == 0 && $8 == 0 { row[$1] = $0 }
        END {
            for (i = 1; i <= last; i++)
                if (!(i in left)) print i in row ? row[i] : i "\t:\t0\t0\t0\t0\t0\t0\tdone before, or no job"
        }' >"$run/joblog" || refuse "$run: cannot be written"
    export PARALLEL_SHELL=/bin/sh
    # shellcheck disable=SC2086  # $setsid is one word or none
    awk '{ print NR }' "$run/jobs.sh" | $setsid parallel --plain --ungroup --jobs "$jobs" --joblog "$run/joblog" \
        --resume-failed --retries $((retries + 1)) --termseq TERM,600000,KILL,25 ${hosts:+--sshloginfile "$hosts" --env PATH --env OMP_NUM_THREADS \
        --env MKL_NUM_THREADS --env RUN_BEFORE --env RUN_BEGAN --env RUN_GPUS --env RUN_SLOTS} \
        "exec sh $(quoted "$root/scripts/run_line.sh") $(quoted "$run") {}" &
else
    RUN_TRIES=$((retries + 1))
    # shellcheck disable=SC2086
    echo "$todo" | $setsid xargs -n 1 -P "$jobs" sh "$root/scripts/run_line.sh" "$run" &
fi
pid=$!
[ -z "$stopped" ] || stop "$stopped"
while kill -0 "$pid" 2>/dev/null; do
    wait "$pid" || :
done
if [ -n "$stopped" ]; then
    # Jobs that the runner has left behind are still saving.
    [ -n "$unlocked" ] || flock -w 600 "$run/lock" true || [ -z "$group" ] || kill -s KILL -- "-$pid" || :
    survey
    say "stopped, $done_before of $total lines done; the same command goes on" >&2
    end_by "$stopped"
fi
survey
if [ -n "$todo" ]; then
    say "$((total - done_before)) of $total lines failed:" >&2
    list_undone "$todo" >&2
    say "once the cause is mended, the same command runs only these" >&2
    exit 1
fi
say "all $total lines done"
