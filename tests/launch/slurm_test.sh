#!/usr/bin/env bash
# slurm_test.sh [PROGRAM]: launch/slurm/train.sbatch under a real slurmctld and slurmd on this machine, as root, with the Debian
# packages slurm-wlm and munge. Takes some minutes; not part of tests/run.sh. In place of the program stands a script
# that ends as each case says, so that what is tested is what the batch script makes of every exit code. With PROGRAM
# (build/lapidary) a real run on two ranks is interrupted as well and has to finish by itself.
set -euo pipefail
root=$(realpath "$(dirname "$0")/../..")
program=${1:+$(realpath "$1")}
for tool in slurmctld slurmd munged; do
  command -v $tool >/dev/null || { echo "slurm_test: $tool is missing; apt-get install slurm-wlm munge" >&2; exit 1; }
done
((EUID == 0)) || { echo "slurm_test: slurmd has to be started by root" >&2; exit 1; }

work=$(mktemp -d)
pids=()
cleanup() {
  local status=$?
  ((status == 0)) || tail -n 30 "$work"/*.log >&2
  scancel --user=root 2>/dev/null || true
  for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
  wait || true
  rm -rf "$work"
  exit "$status"
}
trap cleanup EXIT

# A cluster of one node: two partitions, of which the second preempts the first.
start_cluster() {
  local host
  host=$(hostname -s)
  dd if=/dev/urandom of="$work/munge.key" bs=128 count=1 status=none
  chmod 600 "$work/munge.key"
  munged --foreground --force --key-file="$work/munge.key" --socket="$work/munge.socket" --pid-file="$work/munge.pid" \
    --log-file="$work/munged.log" --seed-file="$work/munge.seed" >/dev/null 2>&1 &
  pids+=($!)
  mkdir -p "$work"/{state,spool}
  cat >"$work/slurm.conf" <<CONF
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$work/munge.socket
CredType=cred/munge
SlurmctldPort=26817
SlurmdPort=26818
SlurmctldPidFile=$work/slurmctld.pid
SlurmdPidFile=$work/slurmd.pid
StateSaveLocation=$work/state
SlurmdSpoolDir=$work/spool
SlurmctldLogFile=$work/slurmctld.log
SlurmdLogFile=$work/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
KillWait=10
MinJobAge=3600
SchedulerParameters=sched_interval=2,bf_interval=2
SlurmctldParameters=preempt_send_user_signal
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=$host NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=low Nodes=$host Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=20 OverSubscribe=NO
PartitionName=high Nodes=$host MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF OverSubscribe=NO
CONF
  export SLURM_CONF=$work/slurm.conf
  sleep 1
  slurmctld -D >/dev/null 2>&1 &
  pids+=($!)
  slurmd -D >/dev/null 2>&1 &
  pids+=($!)
  local i
  for ((i = 0; i < 30; ++i)); do
    [[ $(sinfo -h -p low -o %t 2>/dev/null) == idle ]] && return
    sleep 1
  done
  echo "slurm_test: the node did not come up" >&2
  exit 1
}

# The stand-in program: the nth start of a case ends as its nth word says (a code, "wait" for a signal, "kill").
make_program() {
  mkdir -p "$work/home/build"
  cat >"$work/home/build/lapidary" <<'PROGRAM'
#!/usr/bin/env bash
if [[ "$1 $2" == "config show" ]]; then
  printf 'run:\n  directory: "${CASE_ROOT}/run"  # where\n  seed: 1\n'
  exit
fi
mkdir -p "$CASE_ROOT/run"
starts=$CASE_ROOT/run/starts-$SLURM_PROCID
echo start >>"$starts"
read -ra ends <"$CASE_ROOT/ends"
end=${ends[$(wc -l <"$starts") - 1]:-0}
case $end in
  wait) trap 'exit 75' USR1; for ((i = 0; i < 600; ++i)); do sleep 0.1; done; exit 9 ;;
  kill) ((SLURM_PROCID == 1)) && kill -KILL $$; sleep 1; exit 76 ;;
  progress) mkdir -p "$CASE_ROOT/run/checkpoints/step-$(wc -l <"$starts")"; exit 76 ;;
  78) echo "$(hostname -s)" >"$CASE_ROOT/run/suspect_hosts"; exit 78 ;;
  *) exit "$end" ;;
esac
PROGRAM
  chmod +x "$work/home/build/lapidary"
}

submit() {  # CASE 'ENDS' [sbatch options]: prints the job's number
  mkdir -p "$work/$1"
  echo "$2" >"$work/$1/ends"
  (cd "$work/home" && CASE_ROOT=$work/$1 sbatch --parsable --output="$work/$1/log" "${@:3}" \
    "$root/launch/slurm/train.sbatch" -c any.yaml)
}
until_true() {  # SECONDS COMMAND...
  local limit=$((SECONDS + $1))
  shift
  until "$@"; do
    ((SECONDS < limit)) || return 1
    sleep 1
  done
}
job_state() { scontrol show job "$1" -o 2>/dev/null | sed -nE 's/.* JobState=([A-Z]+) .*/\1/p'; }
starts() { [[ ! -f $work/$1/run/starts-0 ]] || wc -l <"$work/$1/run/starts-0"; }
ended() { [[ $(job_state "$1") =~ COMPLETED|FAILED|CANCELLED|TIMEOUT ]]; }
held_up() { [[ $(job_state "$1") == PENDING && $(squeue -h -j "$1" -o %r) == *"$2"* ]]; }
check() {  # CASE EXPECTED FOUND WHAT
  if [[ $2 != "$3" ]]; then
    echo "slurm_test: $1: $4 is $3, expected $2" >&2
    cat "$work/$1/log" >&2
    exit 1
  fi
}
# CASE 'ENDS' STARTS STATE SUBMIT-OPTIONS...: runs until the job is over.
expect() {
  local job
  job=$(submit "$1" "$2" "${@:5}")
  local limit=$((SECONDS + 240))
  until ended "$job"; do
    ((SECONDS < limit)) || { echo "slurm_test: $1 did not end" >&2; cat "$work/$1/log" >&2; exit 1; }
    sleep 1
    # Slurm holds a requeued job back for two minutes, until every node has forgotten its credential. One node has
    # after a few seconds.
    if held_up "$job" BeginTime; then
      sleep 4
      scontrol update JobId="$job" StartTime=now
    fi
  done
  check "$1" "$3" "$(starts "$1")" "the number of starts"
  check "$1" "$4" "$(job_state "$job")" "the job's state"
  echo "ok: $1"
}

start_cluster
make_program
expect finished "0" 1 COMPLETED
expect bad_input "1" 1 FAILED
expect numeric "77" 1 FAILED
expect interrupted "75 75 0" 3 COMPLETED
expect rank_killed "kill 0" 2 COMPLETED
expect peer_lost "76 76 76 76 76 76 76 76" 6 FAILED
expect peer_lost_with_progress "progress progress progress progress progress progress progress 0" 8 COMPLETED
expect time_limit "wait 0" 2 COMPLETED --time=2 --signal=USR1@90

job=$(submit suspect "78 0")
excluded() { [[ $(scontrol show job "$job" -o) == *" ExcNodeList=$(hostname -s) "* && $(job_state "$job") == PENDING ]]; }
until_true 60 excluded || {
  echo "slurm_test: suspect: not queued again without the node" >&2
  cat "$work/suspect/log" >&2
  exit 1
}
scancel "$job"
echo "ok: suspect"

job=$(submit preempted "wait 0" --partition=low --signal=USR1@30)
until_true 60 test -s "$work/preempted/run/starts-0"
sbatch --parsable --partition=high --ntasks=2 --output=/dev/null --wrap "sleep 5" >/dev/null
until_true 200 ended "$job" || { echo "slurm_test: the preempted job did not end" >&2; cat "$work/preempted/log" >&2; exit 1; }
check preempted 2 "$(starts preempted)" "the number of starts"
check preempted COMPLETED "$(job_state "$job")" "the job's state"
echo "ok: preempted"

[[ -n $program ]] || exit 0
# The real program: USR1 to the ranks in the middle of a run, as at the time limit.
mkdir -p "$work/real/build" "$work/real/configs"
ln -s "$program" "$work/real/build/lapidary"
ln -s "$root/configs/models" "$work/real/configs/models"
run=$work/real/run
"$program" data build --input "$root/configs/sample/sample.jsonl" --output "$work/real/data" --tokenizer bytes \
  --image-tokens 4 --validation 0.08
job=$(cd "$work/real" && sbatch --parsable --output="$work/real/log" "$root/launch/slurm/train.sbatch" \
  -c "$root/configs/quickstart.yaml" --set run.directory="$run" --set data.train="$work/real/data/train" \
  --set data.validation="$work/real/data/validation" --set train.steps=40 --set schedule.warmup_steps=10)
events() { if [[ -f $run/metrics.jsonl ]]; then grep -c "\"event\":\"$1\"" "$run/metrics.jsonl"; else echo 0; fi; }
started() { (($(events step) >= 3)); }
until_true 300 started || { cat "$work/real/log" >&2; exit 1; }
scancel --signal=USR1 "$job"
queued_again() { held_up "$job" BeginTime; }
until_true 120 queued_again || { echo "slurm_test: the real run was not queued again" >&2; cat "$work/real/log" >&2; exit 1; }
sleep 4
scontrol update JobId="$job" StartTime=now
until_true 600 ended "$job" || { echo "slurm_test: the real run did not end" >&2; cat "$work/real/log" >&2; exit 1; }
check real COMPLETED "$(job_state "$job")" "the job's state"
check real 2 "$(events start)" "the number of starts"
check real 40 "$(events step)" "the number of steps"
echo "ok: real"
