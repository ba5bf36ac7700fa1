#!/usr/bin/env bash
# A sweep of 12 points on a real Slurm of one node, with jobs killed on the way, then one model
# trained by two tasks of srun.
#
#     sudo tests/slurm_cluster.sh          on a Debian that may be changed; some three minutes
#
# `./launch.sh test` comes first: it makes the environment, with submitit. This script installs
# slurm-wlm and munge if they are not there, and starts munged, slurmctld and slurmd by hand in a
# folder of their own: one node, SlurmUser=root, proctrack/linuxproc, no accounting. Then
#
# - `./launch.sh sweep --executor=slurm`: the process of one running job is killed with signal 9,
#   another job cancelled, a third put back into the queue; at last the sweep itself is killed, and
#   resumed. It must be gone before, wait for the jobs that it left, and train nothing twice;
# - a partition that is not there, which must be refused in a line;
# - a sweep killed once more and resumed on this machine, without its jobs;
# - `srun -n 2 ./launch.sh train --mesh=data=all`, against one device; and the same in a batch
#   script without srun, which must say that it is alone.
#
# Prints OK and exits with 0 if all is so. Everything that it started is stopped again.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
log() { echo "--- $(date +%T) $*"; }
fail() {
  echo "slurm_cluster.sh: $*" >&2
  exit 1
}
[ "$(id -u)" = 0 ] || fail "needs root: munge and Slurm are started here"
python=${VENV:-$root/.venv}/bin/python
"$python" -c "import submitit" 2>/dev/null || fail "no submitit; ./launch.sh test installs it"

if ! command -v slurmctld >/dev/null || ! command -v munged >/dev/null; then
  log "installing slurm-wlm and munge"
  apt-get -qq update
  DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends slurm-wlm munge \
    >"$work/apt.log"
fi

started=()
stop() {
  [ -z "${SLURM_CONF:-}" ] || scancel --me 2>/dev/null || true
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
  --pid-file="$work/munge/pid" --log-file="$work/munge/log" --seed-file="$work/munge/seed" >"$work/munge.out" 2>&1 &
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
run=$work/run
# await SECONDS COMMAND ...: until it succeeds.
await() {
  local seconds=$1
  shift
  for _ in $(seq $((seconds * 2))); do
    "$@" && return
    sleep 0.5
  done
  return 1
}
said() { [ "$(grep -c "$1" "$2")" -ge "$3" ]; } # said TEXT FILE TIMES
finished() { # finished RUN: points, as the table has them
  "$python" -c "import sqlite3, sys; print(sqlite3.connect(f'file:{sys.argv[1]}/sweep.sqlite?mode=ro',
    uri=True).execute(\"select count(*) from points where status = 'finished'\").fetchone()[0])" "$1"
}
under_way() { # two jobs running, and a point finished
  [ "$(squeue -h -t running | wc -l)" -ge 2 ] && [ -n "$(ls "$1/points" 2>/dev/null)" ]
}
processes() { # processes TEXT MORE: ids of those that have both in their command line, in order
  local file line
  for file in /proc/[0-9]*/cmdline; do
    line=$({ tr '\0' ' ' <"$file"; } 2>/dev/null) || continue # it has ended meanwhile
    if [[ $line == *"$1"*"$2"* ]]; then file=${file%/cmdline}; echo "${file#/proc/}"; fi
  done
}
empty() { [ -z "$(squeue -h)" ]; }
# kill_sweep: signal 9 to $sweeper, which is Python itself: launch.sh has become it.
kill_sweep() {
  grep -qz "experiments.sweep" "/proc/$sweeper/cmdline" || fail "$sweeper is not the sweep"
  kill -9 "$sweeper"
  wait "$sweeper" 2>/dev/null || true
  [ -z "$(processes experiments.sweep "$run")" ] || fail "a sweep of the same folder runs on"
  log "the sweep is gone, at $(finished "$run") finished points; its jobs are there"
  squeue
}
once() { # that no job said twice that it had finished a point
  local twice
  twice=$(grep -rhoE "^point [0-9]+: finished" "$run/logs" | sort | uniq -d)
  [ -z "$twice" ] || fail "trained twice: $twice"
}
small=(--corpus="$work/book.txt" --hidden_size=32 --embedding_size=32 --batch_size=8 --length=10
  --max_vocabulary=100)
options=("${small[@]}" --steps=20000 --executor=slurm --cpus=1 --jobs=2 --minutes=10)

log "12 points, killed on the way"
"$root/launch.sh" sweep --sweep="learning_rate=0.3,3 hidden_size=16,32 seed=0:3" "${options[@]}" \
  --run="$run" >"$work/sweep.out" 2>&1 &
sweeper=$!
started+=("$sweeper")
await 120 under_way "$run" || { cat "$work/sweep.out" >&2; fail "no point was finished"; }
squeue
job=$(squeue -h -t running -o %i | head -1)
other=$(squeue -h -t running -o %i | tail -1)
log "kill -9 of the processes of job $job"
for pid in $(processes submitit.core._submit "$run"); do
  if { tr '\0' '\n' <"/proc/$pid/environ"; } 2>/dev/null | grep -qx "SLURM_ARRAY_TASK_ID=${job#*_}" &&
    [[ $(readlink "/proc/$pid/exe") == *python* ]]; then
    kill -9 "$pid" && echo "killed process $pid of it"
  fi
done
log "scancel of job $other"
scancel "$other"
await 90 said "sent again" "$work/sweep.out" 2 || {
  cat "$work/sweep.out" >&2
  squeue >&2
  fail "the two jobs were not sent again"
}
grep -a "sent again" "$work/sweep.out"
squeue
job=$(squeue -h -t running -o %i | head -1)
log "scontrol requeue of job $job, as a preemption does"
scontrol requeue "$job"
sleep 3
log "kill -9 of the sweep itself"
kill_sweep
[ "$(finished "$run")" -lt 12 ] || fail "too late: all points were finished when the sweep was killed"
! empty || fail "it left no job behind"

log "resumed"
"$root/launch.sh" sweep --run="$run" --resume 2>"$work/resumed.err" | tee "$work/resumed.out"
grep -q "jobs of before in the queue still: .; they are waited for" "$work/resumed.out" || fail "it adopted no job"
log "$(finished "$run") of 12 points finished"
ls "$run" "$run/points"
[ "$(finished "$run")" = 12 ] || fail "the sweep is not complete"
once
await 30 empty || fail "jobs are left over"

log "a partition that is not there"
status=0
"$root/launch.sh" sweep --sweep="seed=0:2" "${options[@]}" --partition=nowhere --run="$work/refused" \
  2>"$work/refused.err" || status=$?
cat "$work/refused.err"
[ "$status" = 2 ] && [ "$(wc -l <"$work/refused.err")" = 1 ] || fail "wanted one line and status 2"

log "a sweep of longer points that is killed, and resumed on this machine"
run=$work/taken
"$root/launch.sh" sweep --sweep="learning_rate=0.3,3 seed=0:3" "${options[@]}" --steps=80000 \
  --run="$run" >"$work/taken.out" 2>&1 &
sweeper=$!
started+=("$sweeper")
await 120 under_way "$run" || { cat "$work/taken.out" >&2; fail "no point was finished"; }
kill_sweep
"$root/launch.sh" sweep --run="$run" --resume --executor=local 2>"$work/taken.err" |
  tee "$work/taken.out"
grep -q "jobs of before in the queue still: .; cancelled" "$work/taken.out" || fail "no job cancelled"
grep -q "points that jobs of before have finished: " "$work/taken.out" || fail "nothing was taken over"
grep -q "points to train" "$work/taken.out" || fail "nothing was left to be trained here"
[ "$(finished "$run")" = 6 ] || fail "the sweep is not complete"
empty || fail "jobs are left over"

log "srun -n 2: one model, two tasks with a device each"
export JAX_NUM_CPU_DEVICES=1
train=("$root/launch.sh" train "${small[@]}" --steps=60 --steps_per_dispatch=5 --learning_rate=1)
srun -n 2 "${train[@]}" --mesh=data=all --run="$work/two" 2>"$work/two.err" | tee "$work/two.out"
"${train[@]}" --mesh=data=1 --run="$work/one" >"$work/one.out" 2>&1
"$python" - "$work/one" "$work/two" <<'PY'
import json, pathlib, sys

one, two = (
    [json.loads(line) for line in (pathlib.Path(run) / "metrics.jsonl").open()] for run in sys.argv[1:]
)
one, two = ([(x["step"], x["loss"]) for x in lines if "loss" in x] for lines in (one, two))
assert [step for step, _ in one] == [step for step, _ in two] and len(one) == 12, (one, two)
apart = max(abs(a / b - 1) for (_, a), (_, b) in zip(one, two))
print(f"loss {one[0][1]:.6f} to {one[-1][1]:.6f}; two tasks are {apart:.1e} from one device at most")
assert apart < 1e-5
devices = json.loads((pathlib.Path(sys.argv[2]) / "versions.json").read_text())["devices"]
assert devices == 2, devices
PY

log "a batch script without srun"
sbatch --wait -n 2 --output="$work/alone.out" --wrap="$(printf "%q " "${train[@]}" --mesh=data=all \
  --run="$work/alone")" || { cat "$work/alone.out" >&2; fail "the batch script failed"; }
grep "it trains alone" "$work/alone.out" || fail "it did not say that it is alone"
empty || await 10 empty || fail "jobs are left over"
echo OK
