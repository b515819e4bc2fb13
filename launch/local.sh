#!/usr/bin/env bash
# Run a recipe on all devices of this machine, in one process.
#
#     launch/local.sh --config=configs/cifar10.py --workdir=runs/cifar10
#
# The script restarts the run after a preemption: exit code 75 (stopped and saved) or 143 (stopped
# before the first line of the program). After an unexpected error or a hang (exit code 70), it
# restarts the run up to RETRIES times, 3 by default. Ctrl-C saves the run and exits with code 130;
# a second Ctrl-C kills it.
#
# PYTHON is the interpreter. DRY_RUN=1 prints the command instead of running it.
set -u
# Succeeds if a variable such as DRY_RUN is set to a value other than 0, false or no.
on() {
  case "${!1:-}" in '' | 0 | false | False | FALSE | no | No | NO) return 1 ;; esac
}
command=("${PYTHON:-python3}" -m can_jax.main "$@")
if on DRY_RUN; then
  printf '%q' "${command[0]}"
  printf ' %q' "${command[@]:1}"
  echo
  exit 0
fi
child=
stopped=0 # the exit code to use after a stop signal
stop() {
  # A terminal sends Ctrl-C to every process, but background children ignore it. Forward it.
  if [ "$stopped" -eq 130 ] && [ "$1" -eq 130 ]; then
    kill -KILL "$child" 2>/dev/null
    exit 130
  fi
  stopped=$1
  if [ -n "$child" ]; then kill -TERM "$child" 2>/dev/null; fi
}
trap 'stop 75' TERM HUP
trap 'stop 130' INT
retries=${RETRIES:-3}
while true; do
  "${command[@]}" &
  child=$!
  # Forward a signal that arrived before the child existed.
  if [ "$stopped" -ne 0 ]; then kill -TERM "$child" 2>/dev/null; fi
  wait "$child"
  code=$?
  # `wait` returns early on a signal, while the child may still be saving.
  while kill -0 "$child" 2>/dev/null; do wait "$child"; code=$?; done
  if [ "$code" -eq 143 ]; then code=75; fi
  if [ "$stopped" -ne 0 ]; then
    if [ "$code" -eq 75 ]; then code=$stopped; fi
    exit "$code"
  fi
  if [ "$code" -eq 70 ] && [ "$retries" -gt 0 ]; then
    retries=$((retries - 1))
    echo "unexpected error: restarting; at most $retries more restarts" >&2
  elif [ "$code" -eq 75 ]; then
    echo "preempted: restarting" >&2
  else
    exit "$code"
  fi
done
