# Sourced by the scripts that run job files. FILE.run/ has jobs.sh (all lines FILE has had; a line keeps its number),
# exit/<line> (exit status: what is done, whoever ran it), log/<line>.log, lock, joblog (GNU parallel's) and slurm/ (job
# ids, Slurm's messages).
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

# queued: set $queued to the tasks of FILE that Slurm still has, one "job state reason" a row.
queued() {
    queued=''
    [ -s "$run/slurm/ids" ] || return 0
    queued=$(squeue -h -r -u "$(id -un)" -o '%F %T %r' 2>/dev/null) ||
        refuse "$file: Slurm does not say whether its jobs are still queued; delete $run/slurm/ids if they are not"
    queued=$(echo "$queued" | awk 'NR == FNR { ours[$1]; next } $1 in ours' "$run/slurm/ids" -)
}

# numbered: print the lines that FILE has had and has.
numbered() {
    awk -v old="$run/jobs.sh" 'BEGIN { while ((getline line <old) > 0) { had[line]; print line } } !($0 in had)' "$file"
}

# begin: make the run folder ready, unless FILE's lines are queued.
begin() {
    queued
    [ -z "$queued" ] || refuse "$file: its lines are queued on Slurm as jobs" \
        "$(echo "$queued" | cut -d ' ' -f 1 | sort -un | paste -sd ' ' -); see status.sh, or scancel them"
    fault=$({ mkdir -p "$run" && mkdir -p "$run/exit" "$run/log" && numbered >"$run/.jobs.$$" &&
        mv "$run/.jobs.$$" "$run/jobs.sh"; } 2>&1) || refuse "$run: cannot be written: $fault"
    rm -f "$run"/.jobs.* # of runners that were killed
}

# was_stopped STATUS: whether TERM or Ctrl-C ended a line with this exit status; run again, it goes on where it was.
was_stopped() { [ "$1" = 143 ] || [ "$1" = 130 ]; }

# survey: set $total, $finished and the line numbers $todo.
survey() {
    total=0 finished=0 todo=''
    for line in $(numbered | awk 'NR == FNR { has[$0]; next }
        /^[[:space:]]*[^#[:space:]]/ && $0 in has { print FNR }' "$file" -); do
        total=$((total + 1)) status=''
        [ ! -f "$run/exit/$line" ] || read -r status <"$run/exit/$line" || :
        if [ "$status" = 0 ]; then finished=$((finished + 1)); else todo="$todo $line"; fi
    done
}
