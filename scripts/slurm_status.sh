#!/bin/sh
# Say how far the job files given to submit_slurm.sh are, and which lines failed. Needs no accounting database.
#   sh scripts/slurm_status.sh FILE [FILE...]
# Lines that failed, and those not queued because they were cancelled or the file before theirs failed, are submitted by
# the same submit_slurm.sh command again.
# Exit status: 0 all done, 3 still going, 1 nothing is queued and some lines failed or were not run, 2 bad input.
set -eu
. "$(dirname -- "$0")/job_runs.sh"
case ${1:-} in
    '') refuse "a job file is needed; see --help" ;;
    -h | --help) help ;;
esac
for name do open_run "$name"; done
going='' bad=''
for name do
    open_run "$name"
    [ -f "$run/jobs.sh" ] || { echo "$name: not submitted yet"; bad=1; continue; }
    queued || refuse "$file: Slurm does not answer"
    survey
    # Rows of "line", then of "line state reason", then of "line exit-status": a task that is ending has an exit status.
    counts=$(
        {
            echo "$todo" | tr ' ' '\n'
            echo "$queued"
            for line in $failed; do
                exit_status "$line"
                echo "$line $status"
            done
        } | awk '
            NF == 1 { state[$1] = "lost" }
            NF == 2 && state[$1] == "lost" || NF == 2 && ending[$1] { state[$1] = "failed" }
            NF > 2 && $1 in state {
                state[$1] = $2 != "PENDING" ? "running" : "waiting"
                ending[$1] = $2 == "COMPLETING"
                if (state[$1] == "waiting") { sub(/^[^ ]* [^ ]* /, ""); why[$0] }
            }
            END {
                for (line in state) n[state[line]]++
                for (reason in why) reasons = reasons (reasons ? ", " : " (") reason
                print n["running"] + 0, n["waiting"] + 0, n["failed"] + 0, n["lost"] + 0
                print reasons ? reasons ")" : ""
                for (line in state) if (state[line] == "failed") print line
            }'
    )
    # shellcheck disable=SC2046  # four counts
    set -- $(echo "$counts" | sed -n 1p)
    echo "$name: $done_before of $total lines done, $1 running, $2 waiting$(echo "$counts" | sed -n 2p), $3 failed," \
        "$4 not queued"
    cmp -s "$file" "$run/jobs.sh" || echo "  it has changed since; these are the lines of $run/jobs.sh"
    list_undone "$(echo "$counts" | sed 1,2d | sort -n)"
    [ "$1$2" = 00 ] || going=1
    [ "$3$4" = 00 ] || bad=1
done
[ -z "$going" ] || exit 3
[ -z "$bad" ]
