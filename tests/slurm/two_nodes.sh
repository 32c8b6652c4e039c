#!/usr/bin/env bash
# A Slurm cluster of two nodes on this machine, and launch/sft.sbatch on it: a tiny model trains on two nodes, the job is
# signalled, goes back into the queue, and resumes. Needs root and Debian's packages:
#
#     apt-get install slurm-wlm munge iproute2
#     tests/slurm/two_nodes.sh [PYTHON]          # PYTHON has mvtrain[train]; default .venv/bin/python
#
# Each node has a network, a host name and a slurmd of its own; node1 also runs slurmctld. All of it lives in namespaces
# that end with this script, and in a temporary folder that is removed: nothing is left behind, no service is started.
set -euo pipefail

ROOT=$(cd "$(dirname "$0")/../.." && pwd)
PYTHON=${1:-$ROOT/.venv/bin/python}
NETWORK=10.214.7

if [ "${INSIDE:-}" != yes ]; then
  for program in slurmctld slurmd munged sbatch ip unshare nsenter; do
    PATH=$PATH:/usr/sbin command -v "$program" >/dev/null ||
      { echo "two_nodes.sh: no $program; apt-get install slurm-wlm munge iproute2" >&2; exit 2; }
  done
  [ "$(id -u)" = 0 ] || { echo "two_nodes.sh: needs root, for network namespaces" >&2; exit 2; }
  folder=$(mktemp -d /tmp/two_nodes.XXXXXX)
  trap 'rm -rf "$folder"' EXIT
  # Its processes are the only ones it sees, and end when its first one does.
  env INSIDE=yes FOLDER="$folder" PATH="$PATH:/usr/sbin" \
    unshare --net --mount --uts --pid --fork --mount-proc --kill-child "$0" "$PYTHON"
  exit
fi

say() { printf '\n== %s\n' "$*"; }

wait_for() { # SECONDS WHAT COMMAND...: until it succeeds
  local seconds=$1 what=$2
  shift 2
  for _ in $(seq $((seconds * 5))); do
    if "$@" >/dev/null 2>&1; then return; fi
    sleep 0.2
  done
  echo "two_nodes.sh: waited $seconds s for $what" >&2
  tail -n 20 "$FOLDER"/*.log >&2
  exit 1
}

# ---- two nodes, joined by a cable

# What only this cluster shall see is mounted over.
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /var/log
mkdir -p "$FOLDER/slurm" "$FOLDER/state" /run/munge
mount --bind "$FOLDER/slurm" /etc/slurm
printf '127.0.0.1 localhost\n%s.1 node1\n%s.2 node2\n' "$NETWORK" "$NETWORK" >"$FOLDER/hosts"
mount --bind "$FOLDER/hosts" /etc/hosts
hostname node1

unshare --net --uts --mount sh -c 'hostname node2 && exec sleep infinity' &
NODE2=$!
on_node2() { nsenter --target "$NODE2" --net --uts --mount -- "$@"; }
wait_for 10 "node2" sh -c "[ \"\$(nsenter --target $NODE2 --uts hostname)\" = node2 ]"

ip link set lo up
ip link add cluster0 type veth peer name cluster0 netns "$NODE2"
ip address add "$NETWORK.1/24" dev cluster0
ip link set cluster0 up
on_node2 ip link set lo up
on_node2 ip address add "$NETWORK.2/24" dev cluster0
on_node2 ip link set cluster0 up

# ---- Slurm

chown munge: /run/munge
dd if=/dev/urandom of="$FOLDER/munge.key" bs=128 count=1 status=none
chown munge: "$FOLDER/munge.key" && chmod 400 "$FOLDER/munge.key"
chmod 711 "$FOLDER"
setpriv --reuid munge --regid munge --clear-groups munged --key-file="$FOLDER/munge.key" --socket=/run/munge/munge.socket.2 \
  --pid-file=/run/munge/munged.pid --seed-file=/run/munge/munged.seed --log-file=/run/munge/munged.log
wait_for 10 munged munge -n

cat >"$FOLDER/slurm/slurm.conf" <<END
ClusterName=two
SlurmctldHost=node1
SlurmUser=root
AuthType=auth/munge
CryptoType=crypto/munge
StateSaveLocation=$FOLDER/state
SlurmdSpoolDir=$FOLDER/spool-%n
SlurmctldPidFile=/run/slurmctld.pid
SlurmdPidFile=/run/slurmd-%n.pid
SlurmctldLogFile=$FOLDER/slurmctld.log
SlurmdLogFile=$FOLDER/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=batch_sched_delay=0,sched_interval=2
MpiDefault=none
KillWait=10
ReturnToService=2
NodeName=node[1-2] CPUs=1 RealMemory=1000 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
END
echo CgroupAutomount=no >"$FOLDER/slurm/cgroup.conf"
slurmctld
slurmd -N node1
on_node2 slurmd -N node2
wait_for 30 "both nodes to be idle" sh -c '[ "$(sinfo --noheader --states=idle --format=%D)" = 2 ]'

say "two nodes"
sinfo --Node --long | tail -n +2

# ---- a recipe, and the job

cd "$ROOT"
export PYTHONPATH=$ROOT PATH="$(dirname "$PYTHON"):$PATH" OMP_NUM_THREADS=1 GLOO_SOCKET_IFNAME=cluster0 DS_ACCELERATOR=cpu
STEPS=60
"$PYTHON" - "$FOLDER" "$STEPS" <<'END' >/dev/null 2>&1
import sys
from pathlib import Path
from tests.distributed.runs import write_recipe
folder, steps = Path(sys.argv[1]), int(sys.argv[2])
write_recipe(folder, tied=True, max_steps=steps, data={"parallel": [str(folder / "traces.jsonl")], "epochs": steps})
END

job() { scontrol show job "$JOB" | tr ' ' '\n' | sed -n "s/^$1=//p"; }
steps_done() { [ "$(wc -l 2>/dev/null <"$FOLDER/$2/log.jsonl")" -ge "$1" ]; } # NUMBER FOLDER
submit() {
  sbatch --parsable --ntasks-per-node=1 --gpus-per-node=0 --cpus-per-task=1 --mem=500 --output="$FOLDER/job-%j.txt" \
    launch/sft.sbatch "$FOLDER/recipe-0.yaml" "$@"
}
ended() { case "$(job JobState)" in COMPLETED | FAILED | CANCELLED | NODE_FAIL) true ;; *) false ;; esac; }

say "sbatch, two nodes with a task each"
JOB=$(submit)
echo "job $JOB"
wait_for 120 "10 steps" steps_done 10 out
squeue --format "%.5i %.9P %.8j %.2t %.5M %.5D %R"
srun --jobid="$JOB" --overlap --nodes=2 --ntasks-per-node=1 sh -c '
  here=$(readlink /proc/self/ns/net)
  for process in $(pgrep -f "^[^ ]*python -u launch/sft.py"); do
    if [ "$(readlink "/proc/$process/ns/net")" = "$here" ]; then echo "$(hostname): a rank in $here"; fi
  done' | sort | tee "$FOLDER/ranks.txt"
[ "$(cut -d : -f 1 "$FOLDER/ranks.txt" | tr '\n' ' ')" = "node1 node2 " ]

say "USR1 to the job, as before its time limit"
scancel --signal=USR1 "$JOB"
wait_for 60 "the job to be put back" sh -c "scontrol show job $JOB | grep -q Restarts=1"
echo "state $(job JobState), restarts $(job Restarts); $(wc -l <"$FOLDER/out/log.jsonl") steps logged"
# Slurm lets a requeued job wait for two minutes; we need not.
scontrol update "JobId=$JOB" StartTime=now 2>/dev/null || true

wait_for 400 "the end of the job" ended
say "the job's output"
grep -v "^ \|^data$" "$FOLDER/job-$JOB.txt" | grep -v -e "^step .*[1-9]/$STEPS " || true
say "the job: $(job JobState), restarts $(job Restarts), exit code $(job ExitCode)"
"$PYTHON" - "$FOLDER/out/log.jsonl" "$STEPS" <<'END'
import json, sys
steps = [json.loads(line)["step"] for line in open(sys.argv[1])]
assert steps == list(range(1, int(sys.argv[2]) + 1)), steps
print(f"log.jsonl has the steps 1 to {len(steps)}, each once")
END
[ "$(job JobState) $(job Restarts)" = "COMPLETED 1" ]

say "another job, cancelled: it saves as well, and stays away"
JOB=$(submit --output_dir "$FOLDER/cancelled")
wait_for 120 "5 steps" steps_done 5 cancelled
scancel "$JOB"
wait_for 60 "the end of the job" ended
sleep 5
grep "stopped after" "$FOLDER/job-$JOB.txt"
echo "state $(job JobState), restarts $(job Restarts)"
[ "$(job JobState) $(job Restarts)" = "CANCELLED 0" ]
