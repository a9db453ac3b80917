#!/bin/sh
# Submit the lines of job files that are not done as Slurm arrays, run from the top of the repository.
#   sh scripts/submit_slurm.sh FILE [FILE...] [--max-jobs N] [sbatch options, such as --partition=gpu --gres=gpu:1]
# Several FILEs are a chain: each starts when the one before has finished without failure, so that
#   sh scripts/submit_slurm.sh train.sh score.sh notebook.sh --max-jobs 50 --time=4:00:00 --mem=16G
# is a whole study. After failures or a cancelled job the same command submits what is left.
# --max-jobs N     at most N lines of a file at a time
# Options of sbatch are written with '=' or in one word (-pgpu) and hold for all FILEs. sbatch hands the environment on:
# activate the Python environment first. Threads per job: --cpus-per-task. Output of line 7: FILE.run/log/7.log; Slurm's
# own messages: FILE.run/slurm/. The folders must be on a file system that the nodes share. Exit status: 0, or 2 for bad
# input and what Slurm refuses. See also status.sh.
set -eu
. "$(dirname -- "$0")/job_runs.sh"
max_jobs='' files='' options=''
read_flags max_jobs '' "$@"
eval "set -- $flags"
for word do
    case $word in
        -[aoedD]* | --array* | --output* | --error* | --dependency* | --chdir* | --wrap* | --open-mode* | --wait | -W)
            refuse "$word: is set here; see --help" ;;
        -*) options="$options $(quoted "$word")" ;;
        *)
            [ -f "$word" ] || refuse "$word: no such job file (values are written with '=', such as --partition=gpu)"
            files="$files $(quoted "$word")"
            ;;
    esac
done
[ -n "$files" ] || refuse "a job file is needed; see --help"
positive --max-jobs "${max_jobs:-1}"
array_size=$(scontrol show config 2>/dev/null | awk '$1 == "MaxArraySize" { print $3 - 1 }')
[ "${array_size:-0}" -gt 0 ] || refuse "no Slurm answers here (scontrol show config), or one without job arrays"
eval "set -- $files"
for name do
    open_run "$name"
    begin
done
threads="\${SLURM_CPUS_PER_TASK:-\${SLURM_CPUS_ON_NODE:-1}}" before=''
for name do
    open_run "$name"
    survey
    [ -n "$todo" ] || { say "$file: all $total lines are done"; continue; }
    eval "set -- $options"
    mkdir -p "$run/slurm"
    for line in $todo; do rm -f "$run/exit/$line"; done
    ids=''
    for lines in $(echo "$todo" | xargs -n "$array_size" | tr ' ' ,); do
        count=$(echo "$lines" | tr , '\n' | wc -l) after=$before
        # The limit is per array: where the file needs several, they take turns.
        [ -z "$max_jobs" ] || [ -z "$ids" ] || after="${after:+$after,}afterany:${ids##*:}"
        id=$(sbatch --parsable --job-name="$(basename -- "$file")" --requeue "$@" ${after:+--dependency="$after" \
            --kill-on-invalid-dep=yes} --array="1-$count${max_jobs:+%$max_jobs}" --chdir="$root" --open-mode=append \
            --output="$(echo "$run" | sed 's/%/%%/g')/slurm/%A_%a.log" <<END
#!/bin/sh
exec env OMP_NUM_THREADS=$threads MKL_NUM_THREADS=$threads sh $(quoted "$root/scripts/run_line.sh") $(quoted "$run") \
    "\$(echo $lines | cut -d , -f "\$SLURM_ARRAY_TASK_ID")"
END
        ) || refuse "$file: not submitted; jobs submitted before it are queued"
        id=${id%%;*}
        echo "$id" >>"$run/slurm/ids"
        ids=$ids:$id
        say "$file: $count of $total lines submitted as $id${after:+, $after}; logs: $run/log"
    done
    before=afterok$ids
done
