#!/usr/bin/env bash
# Run a recipe on TPU slices of a GKE cluster, as a JobSet (launch/jobset.yaml).
#
#     NAME=can IMAGE=gcr.io/me/can_jax ACCELERATOR=tpu-v5-lite-podslice TOPOLOGY=16x16 HOSTS=64 \
#         launch/gke.sh --config=configs/vit_l.py --workdir=gs://bucket/runs/vit_l \
#         --config.data.source=tfrecord --config.data.path='gs://bucket/imagenet/{split}-*.tfrecord'
#
# HOSTS is the number of virtual machines of a slice: the number of chips of TOPOLOGY divided by
# CHIPS, the chips of a machine (4 by default). SLICES is the number of slices (1 by default). This
# package must be installed in the image with '.[tpu]'. If a pod exits with code 75 or 143, or its
# node is preempted, all pods are restarted. Any other failure ends the JobSet. DRY_RUN=1 prints the
# manifest instead of applying it.
set -eu
# Succeeds if a variable such as DRY_RUN is set to a value other than 0, false or no.
on() {
  case "${!1:-}" in '' | 0 | false | False | FALSE | no | No | NO) return 1 ;; esac
}
: "${NAME:?set NAME, the name of the JobSet}" "${IMAGE:?set IMAGE, an image with can_jax installed}"
: "${ACCELERATOR:?set ACCELERATOR, such as tpu-v5-lite-podslice}"
: "${TOPOLOGY:?set TOPOLOGY, such as 16x16}" "${HOSTS:?set HOSTS, the number of machines of a slice}"
here=$(cd "$(dirname "$0")" && pwd)

# The command's arguments as a YAML list in one line. JSON strings are YAML strings, except for
# surrogate pairs, so non-ASCII characters are not escaped.
ARGUMENTS=$("${PYTHON:-python3}" -c '
import json, sys
print(json.dumps(sys.argv[1:], ensure_ascii=False))
' "$@")
export NAME IMAGE ACCELERATOR TOPOLOGY HOSTS ARGUMENTS CHIPS="${CHIPS:-4}" SLICES="${SLICES:-1}"
# All other texts are quoted, too; without quotes a name such as 123 would be a number.
manifest=$("${PYTHON:-python3}" -c '
import json, os, string, sys
texts = ("NAME", "IMAGE", "ACCELERATOR", "TOPOLOGY")
quoted = {name: json.dumps(os.environ[name], ensure_ascii=False) for name in texts}
print(string.Template(sys.stdin.read()).substitute({**os.environ, **quoted}))
' <"$here/jobset.yaml")
if on DRY_RUN; then
  printf '%s\n' "$manifest"
else
  printf '%s\n' "$manifest" | kubectl apply -f -
fi
