#!/usr/bin/env bash
# Runs a recipe on a TPU slice of a GKE cluster, as a JobSet (launch/jobset.yaml):
#
#     NAME=can IMAGE=gcr.io/me/can_jax ACCELERATOR=tpu-v5-lite-podslice TOPOLOGY=16x16 HOSTS=64 \
#         launch/gke.sh --config=configs/vit_l.py --workdir=gs://bucket/runs/vit_l \
#         --config.data.source=tfrecord --config.data.path='gs://bucket/imagenet/{split}-*.tfrecord'
#
# HOSTS is the number of virtual machines of a slice (TOPOLOGY over CHIPS, 4 by default), SLICES how
# many slices (1). The image has this package installed with '.[tpu]'. Pods that exit with 75 or 143, or
# whose node is taken away, are started again together; any other failure ends the JobSet.
# DRY_RUN=1 prints the manifest instead.
set -eu
# Whether a variable such as DRY_RUN is set, and not to 0, false or no.
on() {
  case "${!1:-}" in '' | 0 | false | False | FALSE | no | No | NO) return 1 ;; esac
}
: "${NAME:?set NAME, of the JobSet}" "${IMAGE:?set IMAGE, with can_jax installed}"
: "${ACCELERATOR:?set ACCELERATOR, such as tpu-v5-lite-podslice}"
: "${TOPOLOGY:?set TOPOLOGY, such as 16x16}" "${HOSTS:?set HOSTS, of a slice}"
here=$(cd "$(dirname "$0")" && pwd)

# The command's arguments as a YAML list in one line: JSON strings are YAML strings, if characters
# beyond 16 bits are not written as pairs.
ARGUMENTS=$("${PYTHON:-python3}" -c '
import json, sys
print(json.dumps(sys.argv[1:], ensure_ascii=False))
' "$@")
export NAME IMAGE ACCELERATOR TOPOLOGY HOSTS ARGUMENTS CHIPS="${CHIPS:-4}" SLICES="${SLICES:-1}"
# So is any other text, which a name such as 123 would not be without quotes.
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
