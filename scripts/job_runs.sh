# Sourced by the scripts that run job files: FILE.run/ belongs to FILE, whoever runs it. It has jobs.sh (the lines that FILE
# has had, numbered as they came: a line keeps its number), exit/<line> (exit status, the only truth about what is done),
# log/<line>.log, lock (held by runners), joblog (GNU parallel's last), slurm/ (job ids, Slurm's messages).
# shellcheck shell=sh disable=SC2034
root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
. "$root/scripts/flags.sh"

# open_run FILE: set $file (absolute) and $run, after a check of the file.
open_run() {
    [ -f "$1" ] || refuse "$1: no such job file"
    file=$(CDPATH='' cd -- "$(dirname -- "$1")" && pwd)/$(basename -- "$1")
    run=$file.run
    fault=$(awk '/\r$/ { print "line " NR " ends in a carriage return"; exit }
        /\\$/ { print "line " NR " ends in a backslash; a job is one line"; exit }
        /^[[:space:]]*[^#[:space:]]/ { jobs++ }
        END { if (!jobs) print "holds no jobs" }' "$file" | head -n 1)
    [ -z "$fault" ] || refuse "$file: $fault"
}

# numbered: print jobs.sh with the lines that FILE has now. begin: write it, in a run folder that is there.
numbered() {
    if [ -f "$run/jobs.sh" ]; then
        awk 'NR == FNR { was[$0]; print; next } !($0 in was)' "$run/jobs.sh" "$file"
    else
        awk 1 "$file"
    fi
}
begin() {
    new=$run/.jobs.$$
    fault=$({ mkdir -p "$run" && mkdir -p "$run/exit" "$run/log" && : >>"$run/lock" && numbered >"$new" &&
        { cmp -s "$new" "$run/jobs.sh" || mv "$new" "$run/jobs.sh"; }; } 2>&1) || {
        rm -f "$new" 2>/dev/null || :
        refuse "$run: cannot be written: $fault"
    }
    [ ! -f "$new" ] || rm -f "$run"/.jobs.*
}

# survey: set $total, $finished, and the line numbers $todo and $failed (those of $todo with an exit status).
survey() {
    total=0 finished=0 todo='' failed=''
    for line in $(numbered | awk 'NR == FNR { is[$0]; next } /^[[:space:]]*[^#[:space:]]/ && $0 in is { print FNR }' "$file" -); do
        total=$((total + 1))
        exit_status "$line"
        case $status in
            0) finished=$((finished + 1)) ;;
            '') todo="$todo $line" ;;
            *) todo="$todo $line" failed="$failed $line" ;;
        esac
    done
}
exit_status() {
    status=''
    [ ! -f "$run/exit/$1" ] || read -r status <"$run/exit/$1" || :
}

# list_undone LINES: each with its exit status, command and log.
list_undone() {
    for line in $1; do
        exit_status "$line"
        printf '  line %s, %s: %s\n    log: %s\n' "$line" "${status:+exit status }${status:-did not run to its end}" \
            "$(sed -n "${line}p" "$run/jobs.sh")" "$run/log/$line.log"
    done
}

# queued: set $queued to the tasks of FILE that Slurm still has, one "job state reason" a row. refuse_queued: stop if any.
queued() {
    queued=''
    [ -s "$run/slurm/ids" ] || return 0
    queued=$(squeue -h -r -u "$(id -un)" -o '%F %T %r' 2>/dev/null) || return
    queued=$(echo "$queued" | awk 'NR == FNR { ours[$1]; next } $1 in ours' "$run/slurm/ids" -)
}
refuse_queued() {
    queued || refuse "$file: cannot ask Slurm whether its jobs are still queued; delete $run/slurm/ids if they are not"
    ids=$(echo "$queued" | cut -d ' ' -f 1 | sort -un | paste -sd ' ' -)
    [ -z "$ids" ] || refuse "$file: its lines are queued on Slurm as jobs $ids; see status.sh, or scancel them"
    rm -f "$run/slurm/ids" 2>/dev/null || :
}
