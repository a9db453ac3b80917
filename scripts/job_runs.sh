# Sourced by run_jobs.sh, submit_slurm.sh and slurm_status.sh: job files and their run folders.
# FILE.run/ belongs to FILE, whoever runs it: jobs.sh (FILE as it was when it was started), exit/<line> (exit status,
# the only truth about what is done), log/<line>.log, joblog (GNU parallel's), slurm/ (job ids, Slurm's messages).
# shellcheck shell=sh disable=SC2034
root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
. "$root/scripts/flags.sh"

# open_run FILE: set $file (absolute) and $run, after a check of the file.
open_run() {
    [ -f "$1" ] || refuse "$1: no such job file"
    file=$(CDPATH='' cd -- "$(dirname -- "$1")" && pwd)/$(basename -- "$1")
    run=$file.run
    fault=$(awk '/\r$/ { print "line " NR " ends in a carriage return"; exit }
        /\\$/ { print "line " NR " ends in a backslash; a job is one line"; exit }' "$file")
    [ -z "$fault" ] || refuse "$file: $fault"
    [ -n "$(job_lines "$file")" ] || refuse "$file: holds no jobs"
}

# job_lines FILE: the numbers of its lines that are jobs; blank lines and comments are none.
job_lines() { awk '/^[[:space:]]*[^#[:space:]]/ { print NR }' "$1"; }

# survey: set $total, $done_before, and the line numbers $todo and $failed (those of $todo with an exit status).
survey() {
    total=0 done_before=0 todo='' failed=''
    for line in $(job_lines "$run/jobs.sh"); do
        total=$((total + 1))
        exit_status "$line"
        case $status in
            0) done_before=$((done_before + 1)) ;;
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
        case $status in '') status='did not run to its end' ;; *) status="exit status $status" ;; esac
        printf '  line %s, %s: %s\n    log: %s\n' "$line" "$status" "$(sed -n "${line}p" "$run/jobs.sh")" "$run/log/$line.log"
    done
}

# freeze: make $run/jobs.sh a copy of $file. Where $file has changed, exit files and logs follow their lines to their new
# numbers, and those of lines that are gone are dropped. With $again, nothing counts as done. A kill in between is made
# good by the next call: $run/new is complete as soon as it has this name.
freeze() {
    fault=$(mkdir -p "$run" 2>&1 && : 2>&1 >>"$run/lock") || refuse "${fault:-$run: cannot be written}"
    stale || return 0
    exec 9>>"$run/lock"
    lock -w 2 9 || ! stale ||
        refuse "$file: has changed or is to run again while its lines are running; wait for them or stop them first"
    install_new
    if stale; then
        fault=$(prepare_new 2>&1) || refuse "$run: cannot be written: $fault"
        install_new
    fi
    exec 9>&-
}
stale() { [ -n "${again:-}" ] || [ -d "$run/new" ] || ! cmp -s "$file" "$run/jobs.sh"; }
prepare_new() {
    new=$run/.new.$$
    rm -rf "$run"/.new.*
    mkdir -p "$new/exit" "$new/log" && cp "$file" "$new/jobs.sh" || return
    if [ -z "${again:-}" ] && [ -f "$run/jobs.sh" ]; then
        awk 'old { was[$0, ++n[$0]] = FNR; next } ($0, ++m[$0]) in was { print was[$0, m[$0]], FNR }' \
            old=1 "$run/jobs.sh" old=0 "$file" | while read -r was is; do
            [ ! -f "$run/exit/$was" ] || cp "$run/exit/$was" "$new/exit/$is" || exit
            [ ! -f "$run/log/$was.log" ] || cp "$run/log/$was.log" "$new/log/$is.log" || exit
        done || return
    fi
    mv "$new" "$run/new"
}
install_new() {
    [ -d "$run/new" ] || return 0
    rm -f "$run/joblog"
    for part in exit log jobs.sh; do
        [ ! -e "$run/new/$part" ] || { rm -rf "${run:?}/$part" && mv "$run/new/$part" "$run/$part"; }
    done
    rmdir "$run/new"
}

# queued: set $queued to the tasks of this file that Slurm still knows as running or waiting, one "line state reason" a
# row, and $queued_ids to their job ids.
queued() {
    queued='' queued_ids=''
    [ -s "$run/slurm/ids" ] || return 0
    tasks=$(squeue -h -r -u "$(id -un)" -o '%F %K %T %r' 2>/dev/null) || return 1
    queued=$(echo "$tasks" | awk 'NR == FNR { offset[$1] = $2; next } $1 in offset { $2 += offset[$1]; print }' \
        "$run/slurm/ids" -)
    queued_ids=$(echo "$queued" | awk '$1 { print $1 }' | sort -un | paste -sd ' ' -)
    queued=$(echo "$queued" | cut -d ' ' -f 2-)
}

# refuse_queued: stop where lines of $file are queued on Slurm.
refuse_queued() {
    queued || refuse "$file: cannot ask Slurm whether its jobs are still queued; delete $run/slurm/ids if they are not"
    [ -z "$queued_ids" ] || refuse "$file: its lines are queued on Slurm as jobs $queued_ids; see slurm_status.sh, or scancel them"
    rm -f "$run/slurm/ids" 2>/dev/null || :
}
