#!/bin/sh
# Run the lines of a job file, N at a time, from the top of the repository.
#   sh scripts/run_jobs.sh FILE [-j N]
# Every job gets cores/N threads. Each line's output goes to FILE.logs/<line number>.log. The exit status is 1 if a
# line failed; finished work is skipped by the jobs themselves, so the same command goes on where it was.
set -eu
usage() { sed -n '2,5s/^# \{0,1\}//p' "$0" >&2; exit 2; }
file='' jobs=''
while [ $# -gt 0 ]; do
    case $1 in
        -j) [ $# -ge 2 ] || usage; jobs=$2; shift 2 ;;
        -h | --help | -*) usage ;;
        *) [ -z "$file" ] || usage; file=$1; shift ;;
    esac
done
[ -n "$file" ] || usage
[ -f "$file" ] || { echo "run_jobs: $file: no such job file" >&2; exit 2; }
cores=$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1)
jobs=${jobs:-$cores}
case $jobs in '' | *[!0-9]* | 0) echo "run_jobs: -j $jobs: not a number of jobs" >&2; exit 2 ;; esac
threads=$((cores / jobs))
[ "$threads" -ge 1 ] || threads=1
export OMP_NUM_THREADS="$threads" MKL_NUM_THREADS="$threads"

file=$(CDPATH='' cd -- "$(dirname -- "$file")" && pwd)/$(basename -- "$file")
cd "$(dirname -- "$0")/.."
total=$(wc -l <"$file" | tr -d ' ')
logs=$file.logs
mkdir -p "$logs"
rm -f "$logs"/*.failed
export JOB_FILE="$file" JOB_LOGS="$logs" JOB_TOTAL="$total"
# shellcheck disable=SC2016  # expanded by the inner shell
seq "$total" | xargs -n 1 -P "$jobs" sh -c '
    if sh -c "$(sed -n "${1}p" "$JOB_FILE")" >"$JOB_LOGS/$1.log" 2>&1; then
        echo "job $1 of $JOB_TOTAL done: $(tail -n 1 "$JOB_LOGS/$1.log")"
    else
        touch "$JOB_LOGS/$1.failed"
        echo "job $1 of $JOB_TOTAL FAILED, see $JOB_LOGS/$1.log: $(tail -n 1 "$JOB_LOGS/$1.log")" >&2
    fi' run_jobs
failed=$(find "$logs" -name '*.failed' | wc -l | tr -d ' ')
if [ "$failed" -gt 0 ]; then
    echo "run_jobs: $failed of $total jobs failed; run the same command again once the cause is mended" >&2
    exit 1
fi
