#!/bin/sh
# Run the lines of a job file, several at a time, from the top of the repository.
#   sh scripts/run_jobs.sh FILE [-j N] [--gpus 0,1] [--retries R] [--sshloginfile HOSTS] [--again]
# -j N             jobs at a time (on each host): one per GPU with --gpus, else one per core; each gets cores/N threads,
#                  or OMP_NUM_THREADS if that is set
# --gpus 0,1       each job sees one of these GPUs (CUDA_VISIBLE_DEVICES) and runs on it, never on the CPU unless its
#                  line says --device; more jobs than GPUs share them evenly
# --retries R      a line that fails is tried R times more (0)
# --sshloginfile   GNU parallel's file of hosts; they must see this folder and FILE under the same paths
# --again          run finished lines again, too
# A line that has ended with status 0 is done and is not run again: after a failure, a kill or a change of FILE the same
# command runs what is left. Output of line 7: FILE.run/log/7.log. TERM, Ctrl-C and HUP let running jobs save and leave.
# Where GNU parallel is not installed, xargs runs the lines, without --retries and --sshloginfile. See also status.sh.
# Exit status: 0 all done, 1 some failed, 2 bad input; stopped, it ends by the signal (128 + its number in $?).
set -eu
. "$(dirname -- "$0")/job_runs.sh"
j='' gpus='' retries=0 sshloginfile='' again='' runner='parallel'
read_flags 'j gpus retries sshloginfile' again "$@"
eval "set -- $flags"
case $#:${1:--} in 1:[!-]*) ;; *) refuse "${*:-nothing}: one job file is needed; see --help" ;; esac
positive -j "${j:-1}"
case $retries in *[!0-9]*) refuse "--retries $retries: not a whole number" ;; esac
[ -z "$sshloginfile" ] || [ -f "$sshloginfile" ] || refuse "--sshloginfile $sshloginfile: no such file"
parallel --version 2>/dev/null | grep -q '^GNU parallel' || runner='xargs' # moreutils has another one
[ "$runner" = parallel ] || [ "$retries$sshloginfile" = 0 ] ||
    refuse "--retries and --sshloginfile need GNU parallel: apt, dnf, brew and conda have it as 'parallel'"
if [ -n "$gpus" ]; then
    count=$(echo "$gpus" | tr , '\n' | wc -l | tr -d ' ') ask='import torch; print(torch.cuda.device_count())'
    j=${j:-$count} found=$count
    command -v flock >/dev/null || refuse "--gpus needs flock (util-linux)"
    # On other hosts each line says whether it finds a GPU.
    [ -n "$sshloginfile" ] || found=$(CUDA_VISIBLE_DEVICES=$gpus python -c "$ask" 2>&1 | tail -n 1)
    [ "$found" = "$count" ] || refuse "--gpus $gpus: PyTorch in this environment finds of these: $found"
fi
open_run "$1"
begin
exec 9>>"$run/lock"
flock -s -w 2 9 2>/dev/null || : # for status.sh
[ -z "$again" ] || rm -f "$run"/exit/*
survey
[ -n "$todo" ] || { say "all $total lines of $file were done before; --again runs them again"; exit; }
cores=$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1)
j=${j:-$cores}
threads=${OMP_NUM_THREADS:-$((cores > j ? cores / j : 1))}
say "$((total - finished)) of $total lines to run, $finished done before;" \
    "$j at a time with $runner, $threads threads each"
line="env $(quoted "PATH=$PATH") OMP_NUM_THREADS=$threads MKL_NUM_THREADS=${MKL_NUM_THREADS:-$threads} RUN_SLOTS=$j \
RUN_GPUS=$(quoted "$gpus") RUN_BEFORE=$finished RUN_BEGAN=$(date +%s) RUN_PID=$([ -n "$sshloginfile" ] || echo $$) \
sh $(quoted "$root/scripts/run_line.sh") $(quoted "$run")"
# shellcheck disable=SC2086  # a list
if [ "$runner" = parallel ]; then
    export PARALLEL_SHELL=/bin/sh
    attend parallel --plain --ungroup --jobs "$j" --joblog "$run/joblog" --retries $((retries + 1)) \
        --termseq TERM,600000,KILL,25 ${sshloginfile:+--sshloginfile "$sshloginfile"} "exec $line {}" ::: $todo 9>&-
else # which a TERM ends at once: cat waits for its jobs
    attend sh -c "trap : TERM; echo $todo | xargs -n 1 -P $j $line | (trap '' TERM; exec cat)" 9>&-
fi
exec sh "$root/scripts/status.sh" "$file" 9>&-
