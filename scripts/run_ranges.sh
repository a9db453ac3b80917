# Sourced by the generators of ensemble jobs: read --runs and --runs_per_job, print one line per range of runs.
# $script is the script of the lines; all other flags are passed on to it as they are, once it has accepted them. Set by
# who sources it, if wanted: the defaults $runs and $runs_per_job, and $inclusive=1 for a script with --start_idx and a
# last --stop_idx.
# shellcheck shell=sh disable=SC2154
set -eu
. "$(dirname -- "$0")/flags.sh"
runs=${runs:-1000} runs_per_job=${runs_per_job:-1} inclusive=${inclusive:-0}
read_flags 'runs runs_per_job' '' "$@"
positive --runs "$runs"
positive --runs_per_job "$runs_per_job"
if [ "$inclusive" = 1 ]; then first=start_idx last=stop_idx; else first=start_run last=stop_run; fi
refuse_flags 'is set by --runs and --runs_per_job' "$first" "$last"
[ -z "$flags" ] || check_line "python $script$flags"
for start in $(seq 0 "$runs_per_job" $((runs - 1))); do
    stop=$((start + runs_per_job < runs ? start + runs_per_job : runs))
    printf '%s\n' "python $script$flags --$first $start --$last $((stop - inclusive))"
done
