#!/bin/bash
# A one-node Slurm for tests, on the loopback interface only, with all files in one directory. Needs root and Debian.
#   slurm_one_node.sh start DIR; source DIR/env   ...   slurm_one_node.sh stop DIR
set -euo pipefail
[ $# = 2 ] || { sed -n 2,3p "$0"; exit 2; }
dir=$(realpath -m "$2")
host=$(hostname -s)

stop() {
  if [ -f "$dir/env" ]; then
    source "$dir/env"
    # Jobs outlive the daemons.
    scancel --user=root 2>/dev/null && for _ in {1..150}; do [ -z "$(squeue -h 2>/dev/null)" ] && break; sleep 0.2; done
  fi
  for daemon in slurmd slurmctld munged; do
    pid=$(cat "$dir/$daemon.pid" 2>/dev/null) || continue
    kill "$pid" 2>/dev/null || continue
    for _ in {1..50}; do kill -0 "$pid" 2>/dev/null || break; sleep 0.2; done
  done
}

start() {
  if ! command -v slurmctld slurmd munged >/dev/null; then
    DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends slurm-wlm munge
  fi
  mkdir -p "$dir"/{bin,state,spool}
  chmod 0755 "$dir"
  # A separate munge leaves the machine's own alone; --force: it need not be reachable for users other than root.
  (umask 077 && head -c 1024 /dev/urandom >"$dir/munge.key")
  munged --force --key-file="$dir/munge.key" --socket="$dir/munge.socket" --pid-file="$dir/munged.pid" \
    --log-file="$dir/munged.log" --seed-file="$dir/munged.seed"
  # cred_expire: how long a requeued job waits; two minutes by default.
  cat >"$dir/slurm.conf" <<CONF
ClusterName=one
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=16817
SlurmdPort=16818
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$dir/munge.socket,cred_expire=6
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
KillWait=5
MinJobAge=3600
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd.pid
SlurmctldLogFile=$dir/slurmctld.log
SlurmdLogFile=$dir/slurmd.log
NodeName=$host NodeAddr=127.0.0.1 CPUs=$(nproc) RealMemory=$(awk '/MemTotal/ {print int($2 / 1200)}' /proc/meminfo)
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE PriorityTier=1 GraceTime=30
PartitionName=urgent Nodes=ALL MaxTime=INFINITE PriorityTier=2
CONF
  # Without accounting, scontrol answers submitit's sacct queries, for jobs of the last MinJobAge seconds.
  cat >"$dir/bin/sacct" <<'SACCT'
#!/bin/bash
echo "JobID|State|NodeList"
while [ $# -gt 0 ]; do
  if [ "$1" = -j ]; then
    scontrol -o show job "$2" 2>/dev/null | awk '{
      split("", field)
      for (i = 1; i <= NF; i++) { at = index($i, "="); field[substr($i, 1, at - 1)] = substr($i, at + 1) }
      id = ("ArrayJobId" in field) ? field["ArrayJobId"] "_" field["ArrayTaskId"] : field["JobId"]
      print id "|" field["JobState"] "|" (field["NodeList"] ~ /^(\(null\))?$/ ? "None assigned" : field["NodeList"])
    }'
    shift
  fi
  shift
done
SACCT
  chmod +x "$dir/bin/sacct"
  echo "export SLURM_CONF='$dir/slurm.conf' PATH='$dir/bin':\$PATH" >"$dir/env"
  source "$dir/env"
  slurmctld
  slurmd -N "$host"
  for _ in {1..100}; do [ "$(sinfo -h -o %T 2>/dev/null)" = idle ] && return; sleep 0.2; done
  tail -n 5 "$dir"/slurm*.log >&2
  stop
  exit 1
}

"$1"
