#!/usr/bin/env bash
# Runs a recipe on this machine, on all of its devices, and starts it again for as long as it is
# preempted (exit code 75: stopped by SIGTERM after saving).
#
#     launch/local.sh --config=configs/cifar10.py --workdir=runs/cifar10
#
# PYTHON chooses the interpreter.
set -u
child=
stopped=0
trap 'if [ -n "$child" ]; then kill -TERM "$child" 2>/dev/null; fi; stopped=1' TERM INT
while true; do
  "${PYTHON:-python3}" -m can_jax.main "$@" &
  child=$!
  # A signal that came before there was a child to tell.
  if [ "$stopped" -eq 1 ]; then kill -TERM "$child" 2>/dev/null; fi
  wait "$child"
  code=$?
  # `wait` returns early when a signal comes; the child may still be saving.
  while kill -0 "$child" 2>/dev/null; do wait "$child"; code=$?; done
  if [ "$code" -ne 75 ] || [ "$stopped" -eq 1 ]; then exit "$code"; fi
  echo "preempted: starting again" >&2
done
