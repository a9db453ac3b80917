#!/bin/sh
# Cancel the jobs of the Slurm that slurm_up.sh has started in FOLDER and stop its daemons.
#   sh tests/slurm_down.sh FOLDER
set -u
cd "$1" || exit 1
SLURM_CONF=$(pwd -P)/slurm.conf
export SLURM_CONF
timeout 10 scancel --user "$(id -un)"
tries=100
while [ "$tries" -gt 0 ] && [ -n "$(timeout 5 squeue -h)" ]; do
    tries=$((tries - 1))
    sleep 0.1
done
pids=$(cat pids)
alive() {
    for pid in $pids; do
        ! kill -0 "$pid" || return 0
    done
    return 1
}
# shellcheck disable=SC2086  # a list
{
    kill -TERM $pids
    tries=100
    while [ "$tries" -gt 0 ] && alive; do
        tries=$((tries - 1))
        sleep 0.1
    done
    kill -KILL $pids
} 2>/dev/null || :
