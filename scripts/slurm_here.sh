#!/bin/bash
# A SLURM of two nodes of one core each on this computer, in a folder, for tests; needs root and
# Debian's packages slurm-wlm and munge.
#
#   scripts/slurm_here.sh start FOLDER    # prints the line that points commands to it
#   scripts/slurm_here.sh stop FOLDER
set -eu
what=${1:?start or stop} folder=$(realpath -m "${2:?a folder}")
export SLURM_CONF=$folder/slurm.conf
socket=$folder/munge.socket

stop() {
    for name in node1 node2 controller munged; do
        if [ -f "$folder/$name.pid" ]; then kill "$(cat "$folder/$name.pid")" 2>/dev/null || true; fi
    done
}

if [ "$what" = stop ]; then
    stop
    exit 0
fi
mkdir -p "$folder"/{state,node1,node2}
chmod 755 "$folder"
dd if=/dev/urandom of="$folder/key" bs=1024 count=1 status=none
chmod 600 "$folder/key"
cat > "$SLURM_CONF" <<CONF
ClusterName=here
SlurmctldHost=localhost
SlurmctldPort=16817
SlurmUser=root
SlurmdUser=root
AuthInfo=socket=$socket
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/%n
SlurmctldPidFile=$folder/controller.pid
SlurmdPidFile=$folder/%n.pid
SlurmctldLogFile=$folder/controller.log
SlurmdLogFile=$folder/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
MpiDefault=none
SchedulerParameters=batch_sched_delay=1,sched_interval=2
NodeName=node1 NodeHostname=localhost Port=16818 CPUs=1 RealMemory=4000
NodeName=node2 NodeHostname=localhost Port=16819 CPUs=1 RealMemory=4000
PartitionName=short Nodes=node1,node2 Default=YES MaxTime=INFINITE State=UP
CONF
munged --force --key-file="$folder/key" --socket="$socket" --pid-file="$folder/munged.pid" \
    --log-file="$folder/munged.log" --seed-file="$folder/munged.seed"
slurmctld
slurmd -N node1
slurmd -N node2
for _ in $(seq 40); do
    if [ "$(sinfo -h -t idle -o %D 2>/dev/null)" = 2 ]; then
        echo "export SLURM_CONF=$SLURM_CONF"
        exit 0
    fi
    sleep 0.5
done
echo "the nodes are not ready after 20 s; see the logs in $folder" >&2
exit 1
