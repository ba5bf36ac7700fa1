#!/usr/bin/env bash
# A sweep of 12 points on a real Slurm of one node, with a job killed on the way.
#
#     sudo tests/slurm_cluster.sh          on a Debian that may be changed; some two minutes
#
# Installs slurm-wlm and munge if they are not there, starts munged, slurmctld and slurmd by hand
# in a folder of their own, runs `./launch.sh sweep --executor=slurm`, kills the process of one
# running job with signal 9, cancels another and puts a third back into the queue, kills the sweep
# itself, resumes it, and looks whether all 12 points are there. Prints OK and exits with 0 if they are. Everything that it
# started is stopped again.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
log() { echo "--- $(date +%T) $*"; }
fail() {
  echo "slurm_cluster.sh: $*" >&2
  exit 1
}
[ "$(id -u)" = 0 ] || fail "needs root: munge and Slurm are started here"

if ! command -v slurmctld >/dev/null || ! command -v munged >/dev/null; then
  log "installing slurm-wlm and munge"
  apt-get -qq update
  DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends slurm-wlm munge \
    >"$work/apt.log"
fi

started=()
stop() {
  for pid in "${started[@]}"; do kill "$pid" 2>/dev/null || true; done
  sleep 1
  rm -rf "$work"
}
trap stop EXIT

host=$(hostname -s)
cores=$(nproc)
memory=$(($(awk '/MemTotal/ {print $2}' /proc/meminfo) / 1024 / 2))
mkdir -p "$work"/{state,spool,munge}
chmod 755 "$work"

log "munge"
dd if=/dev/urandom of="$work/munge/key" bs=1 count=1024 status=none
chmod 400 "$work/munge/key"
chmod 700 "$work/munge"
munged --foreground --force --key-file="$work/munge/key" --socket="$work/munge/socket" \
  --pid-file="$work/munge/pid" --log-file="$work/munge/log" --seed-file="$work/munge/seed" &
started+=($!)

cat >"$work/slurm.conf" <<CONF
ClusterName=one
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$work/munge/socket,cred_expire=10
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
JobRequeue=1
MpiDefault=none
ReturnToService=2
SlurmctldPort=17817
SlurmdPort=17818
SlurmctldPidFile=$work/slurmctld.pid
SlurmdPidFile=$work/slurmd.pid
SlurmctldLogFile=$work/slurmctld.log
SlurmdLogFile=$work/slurmd.log
StateSaveLocation=$work/state
SlurmdSpoolDir=$work/spool
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
KillWait=5
NodeName=$host NodeAddr=127.0.0.1 CPUs=$cores RealMemory=$memory State=UNKNOWN
PartitionName=all Nodes=$host Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
CONF
export SLURM_CONF=$work/slurm.conf
log "slurmctld and slurmd"
slurmctld -D -f "$SLURM_CONF" >"$work/ctl.out" 2>&1 &
started+=($!)
slurmd -D -f "$SLURM_CONF" >"$work/d.out" 2>&1 &
started+=($!)
for _ in $(seq 30); do
  [ "$(sinfo -h -o %t 2>/dev/null)" = idle ] && break
  sleep 1
done
sinfo
[ "$(sinfo -h -o %t)" = idle ] || {
  tail -n 20 "$work"/*.log "$work"/*.out >&2
  fail "the node did not come up"
}

log "a text"
for k in $(seq 400); do
  echo "the cat sat on the mat and the dog ran to the $((k % 7)) cats."
done >"$work/book.txt"
run=${RUN:-$work/run}
sweep() { "$root/launch.sh" sweep "$@" --executor=slurm; }
finished() {
  sqlite() { "$root/.venv/bin/python" -c "import sqlite3, sys; print(sqlite3.connect(sys.argv[1]).execute(sys.argv[2]).fetchone()[0])" "$@"; }
  sqlite "$run/sweep.sqlite" "select count(*) from points where status = 'finished'" 2>/dev/null || echo 0
}
options=(--corpus="$work/book.txt" --steps=20000 --hidden_size=32 --embedding_size=32
  --batch_size=8 --length=10 --max_vocabulary=100 --cpus=1 --jobs=2 --minutes=10)

log "12 points, killed on the way"
sweep --sweep="learning_rate=0.3,3 hidden_size=16,32 seed=0:3" "${options[@]}" --run="$run" \
  >"$work/sweep.out" 2>&1 &
sweeper=$!
started+=("$sweeper")
for _ in $(seq 120); do
  [ "$(squeue -h -t running | wc -l)" -ge 2 ] && [ "$(ls "$run/points" 2>/dev/null | wc -l)" -ge 1 ] && break
  sleep 1
done
squeue
job=$(squeue -h -t running -o %i | head -1)
other=$(squeue -h -t running -o %i | tail -1)
log "kill -9 of the processes of job $job"
for environ in /proc/[0-9]*/environ; do
  if tr '\0' '\n' <"$environ" 2>/dev/null | grep -qx "SLURM_ARRAY_TASK_ID=${job#*_}"; then
    pid=$(basename "$(dirname "$environ")")
    if tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null | grep -q "^[^ ]*python.*submitit"; then
      kill -9 "$pid"
      echo "killed process $pid of it"
    fi
  fi
done
log "scancel of job $other"
scancel "$other"
for _ in $(seq 60); do
  [ "$(grep -c "sent again" "$work/sweep.out")" = 2 ] && break
  sleep 1
done
grep "sent again" "$work/sweep.out"
[ "$(grep -c "sent again" "$work/sweep.out")" = 2 ] || {
  cat "$work/sweep.out" >&2
  squeue >&2
  fail "the two jobs were not sent again"
}
squeue
job=$(squeue -h -t running -o %i | head -1)
log "scontrol requeue of job $job, as a preemption does"
scontrol requeue "$job"
sleep 3
log "kill -9 of the sweep itself, at $(finished) finished points"
kill -9 "$sweeper"
wait "$sweeper" 2>/dev/null || true
squeue

log "resumed"
sweep --run="$run" --resume
count=$(finished)
log "$count of 12 points finished"
ls "$run" "$run/points"
[ "$count" = 12 ] || fail "the sweep is not complete"
for _ in $(seq 20); do
  [ -z "$(squeue -h)" ] && break
  sleep 1
done
[ -z "$(squeue -h)" ] || fail "jobs are left over"
echo OK
