#!/usr/bin/env bash
# Runs a recipe on this machine as several processes, one a GPU. Where one fails, the others are
# stopped. Starts all of them again after a preemption: exit code 75, stopped after saving, or 143,
# stopped before the program had begun. Starts them again up to RETRIES times, 3 by default, after an
# unexpected error, a hang (70) or the sudden end of one of them. Ctrl-C saves and ends with 130; a
# second one ends at once.
#
#     launch/processes.sh 8 --config=configs/vit_b.py --workdir=runs/vit_b --config.data.path=/data
#
# One process drives all GPUs just as well (launch/local.sh); several give each its own input
# pipeline. Of the devices in CUDA_VISIBLE_DEVICES, if that is set, each gets one. Without GPUs the
# processes share the CPU. PYTHON chooses the interpreter, PORT the port on which they meet, a free
# one by default; DRY_RUN=1 prints the commands instead.
set -u
# Whether a variable such as DRY_RUN is set, and not to 0, false or no.
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
# By which the processes tell those of another job that meets on the same port.
export CAN_JAX_JOB="$HOSTNAME-$$-$RANDOM$RANDOM"
stopped=0 # the exit code, once a signal asked to stop
children=()

tell() {
  for child in "${children[@]}"; do kill "-$1" "$child" 2>/dev/null; done
}

stop() {
  # A terminal sends Ctrl-C to every process. This one started the run without it, so passes it on.
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
  if [ "${CUDA_VISIBLE_DEVICES:-}" = -1 ]; then gpu=-1; fi
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
  # A signal that came before all of them were there to be told.
  if [ "$stopped" -ne 0 ]; then tell TERM; fi
  code=0
  left=("${children[@]}")
  while [ "${#left[@]}" -gt 0 ]; do
    wait -n "${left[@]}"
    ended=$?
    if [ "$ended" -eq 143 ]; then ended=75; fi
    still=()
    for child in "${left[@]}"; do kill -0 "$child" 2>/dev/null && still+=("$child"); done
    # `wait` also returns when a signal comes; then as many are left as before.
    if [ "${#still[@]}" -lt "${#left[@]}" ] && [ "$ended" -ne 0 ]; then
      # The first failure counts; that of those who are stopped for it does not.
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
    echo "preempted: starting again" >&2
  elif [ "$retries" -gt 0 ] && { [ "$code" -eq 70 ] || [ "$code" -gt 128 ]; } && [ "$code" -ne 130 ]; then
    retries=$((retries - 1))
    echo "unexpected error: starting again, $retries more times at most" >&2
  else
    exit "$code"
  fi
done
