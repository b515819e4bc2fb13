#!/usr/bin/env bash
# Run a recipe on a Cloud TPU slice: create the slice, copy the last commit of this checkout to all of
# its hosts, install it, and train. After a preemption, repeat these steps until the run is finished.
# After an unexpected error or a hang (exit code 70), repeat them up to RETRIES times, 3 by default.
#
#     NAME=can ZONE=us-west4-a TYPE=v5litepod-256 VERSION=v2-alpha-tpuv5-lite \
#         launch/tpu_vm.sh --config=configs/vit_l.py --workdir=gs://bucket/runs/vit_l \
#         --config.data.source=tfrecord --config.data.path='gs://bucket/imagenet/{split}-*.tfrecord'
#
# SPOT=1 requests a spot slice, which is cheaper and can be preempted. PROJECT defaults to gcloud's
# project. KEEP=1 does not delete the slice at the end. The hosts find each other without flags. uv
# installs Python 3.12, since that of the hosts may be too old. The run directory must be in a bucket,
# because the hosts share no disk. DRY_RUN=1 prints the commands instead of running them.
set -u
# Succeeds if a variable such as DRY_RUN is set to a value other than 0, false or no.
on() {
  case "${!1:-}" in '' | 0 | false | False | FALSE | no | No | NO) return 1 ;; esac
}
: "${NAME:?set NAME, the name of the TPU VM}" "${ZONE:?set ZONE, such as us-west4-a}"
: "${TYPE:?set TYPE, such as v5litepod-256}" "${VERSION:?set VERSION, such as v2-alpha-tpuv5-lite}"
cd "$(dirname "$0")/.." || exit 1
if [ ! -e .git ] || [ ! -e pyproject.toml ]; then
  echo "tpu_vm.sh copies a checkout to the slice, but $PWD is not a checkout: clone the repository" >&2
  exit 1
fi
if ! on DRY_RUN && ! git diff --quiet HEAD; then
  echo "error: tpu_vm.sh copies the last commit to the slice, but $PWD has uncommitted changes:" \
    "commit or stash them" >&2
  exit 1
fi
where=(--zone="$ZONE")
if [ -n "${PROJECT:-}" ]; then where+=(--project="$PROJECT"); fi
run() {
  if on DRY_RUN; then
    printf '%q' "$1"
    printf ' %q' "${@:2}"
    echo
  else
    "$@"
  fi
}
tpu() { run gcloud compute tpus tpu-vm "$@" "${where[@]}"; }
everywhere() { tpu ssh "$NAME" --worker=all --command="$1"; }
state() {
  gcloud compute tpus tpu-vm describe "$NAME" "${where[@]}" --format='value(state)' 2>/dev/null
}

create() {
  local options=(--accelerator-type="$TYPE" --version="$VERSION")
  if on SPOT; then options+=(--spot); fi
  until tpu create "$NAME" "${options[@]}"; do
    echo "the slice could not be created; retrying in five minutes" >&2
    sleep 300
  done
}

setup() {
  local archive
  archive=${TMPDIR:-/tmp}/can_jax-$NAME.tgz
  run git archive --format=tar.gz --output="$archive" HEAD
  tpu scp "$archive" "$NAME:can_jax.tgz" --worker=all &&
    everywhere "mkdir -p can_jax && tar -xzf can_jax.tgz -C can_jax && cd can_jax && \
python3 -m pip install --quiet --user uv && python3 -m uv venv --quiet --clear --python 3.12 .venv && \
python3 -m uv pip install --quiet --python .venv --constraint constraints/py312.txt \
--editable '.[tpu]'"
  local code=$?
  if ! on DRY_RUN; then rm -f "$archive"; fi
  return $code
}

train() {
  local arguments
  arguments=$(printf ' %q' "$@")
  # exec replaces the shell, so that a signal reaches the run.
  everywhere "cd can_jax && exec .venv/bin/python -m can_jax.main$arguments"
}

retries=${RETRIES:-3}
while true; do
  if ! on DRY_RUN && [ "$(state)" = READY ]; then echo "$NAME already exists" >&2; else create; fi
  setup && train "$@"
  code=$?
  if on DRY_RUN; then break; fi
  now=$(state)
  if [ "$now" = READY ]; then
    case $code in
      75 | 143) ;;
      70)
        if [ "$retries" -le 0 ]; then break; fi
        retries=$((retries - 1))
        echo "unexpected error: restarting; at most $retries more restarts" >&2
        ;;
      *) break ;;
    esac
  fi
  if [ "$now" != READY ]; then
    echo "the slice is ${now:-deleted}: creating another" >&2
    tpu delete "$NAME" --quiet
  fi
done
if ! on KEEP; then tpu delete "$NAME" --quiet; fi
exit "$code"
