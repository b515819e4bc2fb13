#!/usr/bin/env bash
# Runs a recipe on this machine, on all of its devices, and starts it again for as long as it is
# preempted (exit code 75: stopped by SIGTERM after saving).
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
stopped=0
trap 'if [ -n "$child" ]; then kill -TERM "$child" 2>/dev/null; fi; stopped=1' TERM INT
while true; do
  "${command[@]}" &
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
