#!/usr/bin/env bash
# Runs a recipe on this machine, on all of its devices. Starts it again after a preemption: exit code
# 75, stopped after saving, or 143, stopped before the program had begun. Starts it again up to
# RETRIES times, 3 by default, after an unexpected error or a hang (70). Ctrl-C saves and ends with
# 130; a second one ends at once.
#
#     launch/local.sh --config=configs/cifar10.py --workdir=runs/cifar10
#
# PYTHON chooses the interpreter; DRY_RUN=1 prints the command instead.
set -u
# Whether a variable such as DRY_RUN is set, and not to 0, false or no.
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
stopped=0 # the exit code, once a signal asked to stop
stop() {
  # A terminal sends Ctrl-C to every process. This one started the run without it, so passes it on.
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
  # A signal that came before there was a child to tell.
  if [ "$stopped" -ne 0 ]; then kill -TERM "$child" 2>/dev/null; fi
  wait "$child"
  code=$?
  # `wait` returns early when a signal comes; the child may still be saving.
  while kill -0 "$child" 2>/dev/null; do wait "$child"; code=$?; done
  if [ "$code" -eq 143 ]; then code=75; fi
  if [ "$stopped" -ne 0 ]; then
    if [ "$code" -eq 75 ]; then code=$stopped; fi
    exit "$code"
  fi
  if [ "$code" -eq 70 ] && [ "$retries" -gt 0 ]; then
    retries=$((retries - 1))
    echo "unexpected error: starting again, $retries more times at most" >&2
  elif [ "$code" -eq 75 ]; then
    echo "preempted: starting again" >&2
  else
    exit "$code"
  fi
done
