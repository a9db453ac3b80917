# Sourced by the generators of ensemble jobs: read --runs and --runs_per_job, print one line per range of runs.
# $script is the script of the lines; all other flags are passed on to it as they are. Set by who sources it,
# if wanted: the defaults $runs and $per_job, and $inclusive=1 for a script with --start_idx and a last --stop_idx.
# shellcheck shell=sh disable=SC2154
set -eu
. "$(dirname -- "$0")/quoted.sh"
runs=${runs:-1000} per_job=${per_job:-1} inclusive=${inclusive:-0} flags=''
if [ "$inclusive" = 1 ]; then first=--start_idx last=--stop_idx; else first=--start_run last=--stop_run; fi
while [ $# -gt 0 ]; do
    case $1 in
        --runs | --runs_per_job)
            case ${2:-} in
                '' | *[!0-9]* | 0) echo "$(basename -- "$0"): $1 ${2:-}: not a positive whole number" >&2; exit 2 ;;
            esac
            if [ "$1" = --runs ]; then runs=$2; else per_job=$2; fi
            shift 2
            ;;
        "$first" | "$last") echo "$(basename -- "$0"): $1 is set by --runs and --runs_per_job" >&2; exit 2 ;;
        -h | --help) sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"; exit ;;
        *) flags="$flags $(quoted "$1")"; shift ;;
    esac
done
start=0
while [ "$start" -lt "$runs" ]; do
    stop=$((start + per_job))
    [ "$stop" -le "$runs" ] || stop=$runs
    printf 'python %s%s %s %d %s %d\n' "$script" "$flags" "$first" "$start" "$last" "$((stop - inclusive))"
    start=$stop
done
