#!/bin/sh
# Start a private one-node Slurm (munged, slurmctld, slurmd) on the loopback interface, without systemd, cgroups or an
# accounting database. Prints the path of its slurm.conf. Everything it writes is in the folder.
#   sh tests/slurm_up.sh FOLDER [MAX_ARRAY_SIZE]
# The folder holds Unix sockets: at most 64 characters, no blanks.
set -eu
PATH=$PATH:/usr/sbin
mkdir -p "$1/ctld" "$1/spool" "$1/munge"
cd "$1"
folder=$(pwd -P)
user=$(id -un) host=$(uname -n)
host=${host%%.*}

# Slurm binds what its host name resolves to. Where that is not the loopback address, the daemons get another name.
named=''
case $(getent ahostsv4 "$(uname -n)" | head -n 1) in
    127.*) ;;
    *) host=localhost named="unshare --uts sh -c 'echo localhost >/proc/sys/kernel/hostname; exec \"\$@\"' sh" ;;
esac
launch() {
    eval "exec setsid $named \"\$@\"" >>"$1.out" 2>&1 </dev/null &
    echo $! >>pids
}
waited_for() {
    tries=300
    until "$@" >/dev/null 2>&1; do
        tries=$((tries - 1))
        [ "$tries" -gt 0 ] || { tail -n 5 ./*.out ./*.log >&2; echo "slurm_up: $* never succeeded" >&2; exit 1; }
        sleep 0.1
    done
}

(umask 077 && head -c 128 /dev/urandom >munge/key)
ports=$(python3 -c 'import socket
a, b = socket.socket(), socket.socket()
a.bind(("127.0.0.1", 0)), b.bind(("127.0.0.1", 0))
print(a.getsockname()[1], b.getsockname()[1])')
# proctrack: with the default, cgroup, lines never run where cgroups are missing and yet count as COMPLETED 0:0.
# select: the default gives a whole node to each task. cred_expire: a requeued task waits this long, 120 s by default.
cat >slurm.conf <<CONF
ClusterName=tests
SlurmctldHost=$host(127.0.0.1)
SlurmUser=$user
SlurmdUser=$user
SlurmctldPort=${ports% *}
SlurmdPort=${ports#* }
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
AuthType=auth/munge
AuthInfo=socket=$folder/munge/socket,cred_expire=5
StateSaveLocation=$folder/ctld
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
MpiDefault=none
MailProg=/bin/true
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=1,bf_interval=1
SlurmdParameters=config_overrides
MaxArraySize=${2:-1001}
ReturnToService=2
KillWait=20
NodeName=$host NodeAddr=127.0.0.1 CPUs=4
PartitionName=main Nodes=ALL Default=YES
CONF
export SLURM_CONF="$folder/slurm.conf"
# --force: folders above that are closed to others, such as pytest's, are a warning and not an error.
launch munged --foreground --force --key-file="$folder/munge/key" --socket="$folder/munge/socket" \
    --pid-file="$folder/munge/pid" --seed-file="$folder/munge/seed"
waited_for munge -n -S "$folder/munge/socket"
launch slurmctld -D
launch slurmd -D
ready() { [ "$(timeout 5 sinfo -h -o %t)" = idle ]; }
waited_for ready
echo "$SLURM_CONF"
