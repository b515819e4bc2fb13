#!/usr/bin/env bash
#SBATCH --job-name=can_jax
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=can_jax-%j.log
#
# Runs a recipe under SLURM, a process a GPU, and puts the job back in the queue when its time is
# over or it is preempted:
#
#     sbatch --nodes=4 launch/slurm.sh --config=configs/vit_l.py --workdir=/shared/runs/vit_l \
#         --config.data.path=/shared/images
#
# Any line above can be changed on sbatch's command line. The processes find each other by SLURM's
# own variables. Five minutes before the end SLURM sends SIGTERM to them; they save after the same
# step and exit with 75, and the job is queued again and resumes. So it is after 143, SIGTERM before
# the program had begun, and up to RETRIES times, 3 by default, after an unexpected error or a hang
# (70). The run directory must be on a file system that all nodes share. PYTHON chooses the interpreter; DRY_RUN=1 prints the
# commands instead.
set -u
# Whether a variable such as DRY_RUN is set, and not to 0, false or no.
on() {
  case "${!1:-}" in '' | 0 | false | False | FALSE | no | No | NO) return 1 ;; esac
}
run() {
  if on DRY_RUN; then
    printf '%q' "$1"
    printf ' %q' "${@:2}"
    echo
  else
    "$@"
  fi
}

# The batch script itself outlives the signal, and hands it to nobody.
trap : TERM
run srun --kill-on-bad-exit=1 "${PYTHON:-python3}" -m can_jax.main "$@"
code=$?
again=
case $code in
  75 | 143) again=preempted ;;
  70) if [ "${SLURM_RESTART_COUNT:-0}" -lt "${RETRIES:-3}" ]; then again="unexpected error"; fi ;;
esac
if [ -n "$again" ] || on DRY_RUN; then
  echo "${again:-preempted}: back in the queue" >&2
  run scontrol requeue "${SLURM_JOB_ID:-JOB}"
fi
exit "$code"
