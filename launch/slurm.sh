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
# Run a recipe under SLURM, one process per GPU. Requeue the job when its time limit is reached or
# it is preempted.
#
#     sbatch --nodes=4 launch/slurm.sh --config=configs/vit_l.py --workdir=/shared/runs/vit_l \
#         --config.data.path=/shared/images
#
# Options of sbatch override the #SBATCH lines above. The processes find each other by SLURM's variables.
# The run directory must be on a file system that all nodes share.
#
# Five minutes before the time limit SLURM sends SIGTERM. The processes save after the same step and
# exit with code 75; the script requeues the job, which then resumes. It also requeues after code
# 143 (SIGTERM before the first line of the program). After an unexpected error or a hang (code 70,
# or 142 if C code held the interpreter), it requeues the job only if the job was requeued fewer than
# RETRIES times, 3 by default.
#
# PYTHON is the interpreter. DRY_RUN=1 prints the commands instead of running them.
set -u
# Succeeds if a variable such as DRY_RUN is set to a value other than 0, false or no.
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

# Since SLURM 22.05, srun ignores --cpus-per-task of sbatch unless this variable repeats it.
if [ -n "${SLURM_CPUS_PER_TASK:-}" ]; then export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK; fi
# The batch script has to survive the signal. SLURM signals the processes itself.
trap : TERM
run srun --kill-on-bad-exit=1 "${PYTHON:-python3}" -m can_jax.main "$@"
code=$?
again=
case $code in
  75 | 143) again=preempted ;;
  70 | 142) if [ "${SLURM_RESTART_COUNT:-0}" -lt "${RETRIES:-3}" ]; then again="unexpected error"; fi ;;
esac
if [ -n "$again" ] || on DRY_RUN; then
  echo "${again:-preempted}: requeued" >&2
  run scontrol requeue "${SLURM_JOB_ID:-JOB}"
fi
exit "$code"
