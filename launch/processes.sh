#!/usr/bin/env bash
# Runs a recipe on this machine as several processes, one a GPU, and starts them again for as long
# as they are preempted (exit code 75). Where one fails, the others are stopped.
#
#     launch/processes.sh 8 --config=configs/vit_b.py --workdir=runs/vit_b --config.data.path=/data
#
# One process drives all GPUs just as well (launch/local.sh); several give each its own input
# pipeline. Without GPUs the processes share the CPU. PYTHON chooses the interpreter, PORT the port
# on which they meet; DRY_RUN=1 prints the commands instead.
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
port=${PORT:-12355}
stopped=0
children=()
trap 'stopped=1; tell TERM' TERM INT

tell() {
  for child in "${children[@]}"; do kill "-$1" "$child" 2>/dev/null; done
}

start() {
  local number=$1
  shift
  local command=("${PYTHON:-python3}" -m can_jax.main --coordinator="127.0.0.1:$port"
    --processes="$count" --process="$number" "$@")
  if on DRY_RUN; then
    printf 'CUDA_VISIBLE_DEVICES=%s' "$number"
    printf ' %q' "${command[@]}"
    echo
    return
  fi
  CUDA_VISIBLE_DEVICES=$number "${command[@]}" &
  children+=($!)
}

while true; do
  children=()
  for ((number = 0; number < count; number++)); do start "$number" "$@"; done
  if on DRY_RUN; then exit 0; fi
  # A signal that came before all of them were there to be told.
  if [ "$stopped" -eq 1 ]; then tell TERM; fi
  code=0
  left=("${children[@]}")
  while [ "${#left[@]}" -gt 0 ]; do
    wait -n "${left[@]}"
    ended=$?
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
  if [ "$code" -ne 75 ] || [ "$stopped" -eq 1 ]; then exit "$code"; fi
  echo "preempted: starting again" >&2
done
