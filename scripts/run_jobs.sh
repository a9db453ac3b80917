#!/bin/sh
# Run the lines of a job file, several at a time, from the top of the repository.
#   sh scripts/run_jobs.sh FILE [-j N] [--gpus 0,1] [--retries R] [--sshloginfile HOSTS] [--again]
# -j N             jobs at a time (on each host): one per GPU with --gpus, else one per core; each gets cores/N threads,
#                  or OMP_NUM_THREADS if that is set
# --gpus 0,1       each job sees one of these GPUs (CUDA_VISIBLE_DEVICES) and runs on it, not on the CPU, unless its line
#                  says --device; more jobs than GPUs share them evenly
# --retries R      a line that fails is tried R times more (0)
# --sshloginfile   GNU parallel's file of hosts; they must see this folder and FILE under the same paths
# --again          run finished lines again, too
# A line that has ended with status 0 is done and is not run again: after a failure, a kill or a change of FILE the same
# command runs what is left. Output of line 7: FILE.run/log/7.log. TERM, Ctrl-C and HUP let running jobs save and leave.
# Runs with GNU parallel where it is installed, else with xargs. See also status.sh.
# Exit status: 0 all done, 1 some failed, 2 bad input; stopped, it ends by the signal (128 + its number in $?).
set -eu
. "$(dirname -- "$0")/job_runs.sh"
file='' jobs='' gpus='' retries=0 sshloginfile='' again='' runner=xargs
read_flags 'gpus retries sshloginfile' again "$@"
eval "set -- $flags"
while [ $# -gt 0 ]; do
    case $1 in
        -j) positive -j "${2:-}"; jobs=$2; shift ;;
        -*) refuse "$1: no such flag; see --help" ;;
        *) [ -z "$file" ] || refuse "$1: one job file at a time; see --help"; file=$1 ;;
    esac
    shift
done
[ -n "$file" ] || refuse "a job file is needed; see --help"
case $retries in *[!0-9]*) refuse "--retries $retries: not a whole number" ;; esac
case ,$gpus, in ,,) ;; *,,* | *[!A-Za-z0-9,:/_-]*) refuse "--gpus $gpus: not a list such as 0,1" ;; esac
[ -z "$gpus" ] || command -v flock >/dev/null || refuse "--gpus needs flock (util-linux)"
! parallel --version 2>/dev/null | grep -q '^GNU parallel' || runner=parallel # moreutils has another one
if [ -n "$sshloginfile" ]; then
    [ -f "$sshloginfile" ] || refuse "--sshloginfile $sshloginfile: no such file"
    [ "$runner" = parallel ] || refuse "--sshloginfile needs GNU parallel"
    sshloginfile=$(CDPATH='' cd -- "$(dirname -- "$sshloginfile")" && pwd)/$(basename -- "$sshloginfile")
elif [ -n "$gpus" ]; then # on other hosts, each line says whether it finds a GPU
    wanted=$(echo "$gpus" | tr , '\n' | sort -u)
    seen=$(CUDA_VISIBLE_DEVICES=$(echo "$wanted" | paste -sd , -) python -c 'import torch; print(torch.cuda.device_count())' 2>&1 | tail -n 1)
    case $seen in
        '' | *[!0-9]*) refuse "--gpus: PyTorch cannot be asked ($seen); activate the environment first" ;;
        "$(echo "$wanted" | grep -c .)") ;;
        *) refuse "--gpus $gpus: PyTorch finds $seen of them on this machine" ;;
    esac
fi
open_run "$file"
refuse_queued
cd "$root"
begin
exec 9>>"$run/lock"
lock -s -w 2 9 || :
[ -z "$unlocked" ] || say "$run: no locks here ($unlocked); do not run the same file twice at once" >&2
[ -z "$again" ] || rm -f "$run"/exit/*
survey
if [ -z "$todo" ]; then
    say "all $total lines of $file were done before; --again runs them again"
    exit
fi
cores=$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1)
[ -z "$gpus" ] || jobs=${jobs:-$(echo "$gpus" | tr , '\n' | grep -c .)}
jobs=${jobs:-$cores}
threads=$((cores > jobs ? cores / jobs : 1))
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$threads}"
export MKL_NUM_THREADS="${MKL_NUM_THREADS:-$OMP_NUM_THREADS}" PARALLEL_SHELL=/bin/sh
export RUN_PID=$$ RUN_BEFORE="$finished" RUN_TRIES=$((retries + 1)) RUN_GPUS="$gpus" RUN_SLOTS="$jobs"
RUN_BEGAN=$(date +%s)
export RUN_BEGAN
say "$((total - finished)) of $total lines to run, $finished done before; $jobs at a time with $runner, $OMP_NUM_THREADS threads each"

# In a session of its own, so that a Ctrl-C reaches the jobs once: from GNU parallel, or with xargs, as a TERM to all.
own_session() {
    ! command -v setsid >/dev/null || exec setsid "$@"
    exec python -c 'import os, sys; os.setsid(); os.execvp(sys.argv[1], sys.argv[1:])' "$@"
}
line_runner="$(quoted "$root/scripts/run_line.sh") $(quoted "$run")"
run_all() {
    exec 9>&- <<END
$(echo "${todo# }" | tr ' ' '\n')
END
    # shellcheck disable=SC2046  # words are meant to split
    [ "$runner" = xargs ] || own_session parallel --plain --ungroup --jobs "$jobs" --joblog "$run/joblog" \
        --termseq TERM,600000,KILL,25 ${sshloginfile:+--sshloginfile "$sshloginfile" $(printf -- '--env %s ' PATH \
        OMP_NUM_THREADS MKL_NUM_THREADS RUN_BEFORE RUN_BEGAN RUN_TRIES RUN_GPUS RUN_SLOTS)} "exec sh $line_runner {}"
    own_session sh -c "trap : TERM; xargs -n 1 -P $jobs sh $line_runner | (trap '' TERM; exec cat)"
}
[ "$runner" = parallel ] || group='-'
attend run_all
survey
if [ -n "$stopped" ]; then
    say "stopped, $finished of $total lines done; the same command goes on" >&2
    end_by "$stopped"
fi
if [ -n "$todo" ]; then
    say "$((total - finished)) of $total lines failed:" >&2
    list_undone "$todo" >&2
    say "once the cause is mended, the same command runs only these" >&2
    exit 1
fi
say "all $total lines done"
