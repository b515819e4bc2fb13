#!/usr/bin/env bash
# Run a recipe on this machine as several processes, one per GPU.
#
#     launch/processes.sh 8 --config=configs/vit_b.py --workdir=runs/vit_b --config.data.path=/data
#
# One process can also drive all GPUs (launch/local.sh). Several processes have one input pipeline
# each. If CUDA_VISIBLE_DEVICES is set, each process gets one of its devices. Without GPUs the
# processes share the CPU.
#
# If a process fails, the script stops the others. It restarts all of them after a preemption: exit
# code 75 (stopped and saved) or 143 (stopped before the first line of the program). After an
# unexpected error or a hang (exit code 70), or if a signal killed a process, it restarts them up to
# RETRIES times, 3 by default. Ctrl-C saves the run and exits with code 130; a second Ctrl-C kills it.
#
# PYTHON is the interpreter. PORT is the port of process 0, a free one by default. DRY_RUN=1 prints
# the commands instead of running them.
set -u
# Succeeds if a variable such as DRY_RUN is set to a value other than 0, false or no.
on() {
  case "${!1:-}" in '' | 0 | false | False | FALSE | no | No | NO) return 1 ;; esac
}
count=${1:-}
if [[ ! $count =~ ^[1-9][0-9]*$ ]]; then
  echo "error: COUNT='$count' is not a number of processes;" \
    "usage: launch/processes.sh COUNT --config=… --workdir=…" >&2
  exit 1
fi
shift
gpus=()
if [ -n "${CUDA_VISIBLE_DEVICES:-}" ]; then
  IFS=, read -ra gpus <<<"$CUDA_VISIBLE_DEVICES"
  if [ "${#gpus[@]}" -lt "$count" ] && [ "$CUDA_VISIBLE_DEVICES" != -1 ]; then
    echo "error: COUNT=$count, but CUDA_VISIBLE_DEVICES=$CUDA_VISIBLE_DEVICES names" \
      "${#gpus[@]} devices; name one for each process" >&2
    exit 1
  fi
fi
# Identifies the job, so that a process of another job on the same port is rejected.
export CAN_JAX_JOB="$HOSTNAME-$$-$RANDOM$RANDOM"
stopped=0 # the exit code to use after a stop signal
children=()

tell() {
  for child in "${children[@]}"; do kill "-$1" "$child" 2>/dev/null; done
}

stop() {
  # A terminal sends Ctrl-C to every process, but background children ignore it. Forward it.
  if [ "$stopped" -eq 130 ] && [ "$1" -eq 130 ]; then
    tell KILL
    exit 130
  fi
  stopped=$1
  tell TERM
}
trap 'stop 75' TERM HUP
trap 'stop 130' INT
retries=${RETRIES:-3}

choose_port() {
  port=${PORT:-}
  if [ -n "$port" ]; then return; fi
  port=$("${PYTHON:-python3}" -c '
import socket
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    print(free.getsockname()[1])
') || exit 1
}

start() {
  local number=$1
  shift
  local gpu=${gpus[number]:-$number}
  case ${CUDA_VISIBLE_DEVICES-unset} in '' | -1) gpu=-1 ;; esac # An empty list hides all GPUs, too.
  local command=("${PYTHON:-python3}" -m can_jax.main --coordinator="127.0.0.1:$port"
    --processes="$count" --process="$number" "$@")
  if on DRY_RUN; then
    printf 'CUDA_VISIBLE_DEVICES=%s' "$gpu"
    printf ' %q' "${command[@]}"
    echo
    return
  fi
  CUDA_VISIBLE_DEVICES=$gpu "${command[@]}" &
  children+=($!)
}

while true; do
  children=()
  choose_port
  for ((number = 0; number < count; number++)); do start "$number" "$@"; done
  if on DRY_RUN; then exit 0; fi
  # Forward a signal that arrived before all children existed.
  if [ "$stopped" -ne 0 ]; then tell TERM; fi
  code=0
  left=("${children[@]}")
  while [ "${#left[@]}" -gt 0 ]; do
    wait -n "${left[@]}"
    ended=$?
    if [ "$ended" -eq 143 ]; then ended=75; fi
    still=()
    for child in "${left[@]}"; do kill -0 "$child" 2>/dev/null && still+=("$child"); done
    # `wait` also returns on a signal; then the number of children is unchanged.
    if [ "${#still[@]}" -lt "${#left[@]}" ] && [ "$ended" -ne 0 ]; then
      # The first failure determines the exit code. Processes stopped because of it do not.
      if [ "$code" -eq 0 ] || [ "$code" -eq 75 ]; then code=$ended; fi
      if [ "$ended" -ne 75 ]; then tell KILL; fi
    fi
    left=("${still[@]}")
  done
  if [ "$stopped" -ne 0 ]; then
    if [ "$code" -eq 75 ]; then code=$stopped; fi
    exit "$code"
  fi
  if [ "$code" -eq 75 ]; then
    echo "preempted: restarting" >&2
  elif [ "$retries" -gt 0 ] && { [ "$code" -eq 70 ] || [ "$code" -gt 128 ]; } && [ "$code" -ne 130 ]; then
    retries=$((retries - 1))
    echo "unexpected error: restarting; at most $retries more restarts" >&2
  else
    exit "$code"
  fi
done
