"""`python -m can_jax.main --config=RECIPE --workdir=DIR [--config.key=value …]`

Pretrains an encoder by a recipe, in a run directory. Re-running the command resumes from the latest
checkpoint. Any key of the recipe can be set on the command line. For several hosts, run the same
command on each; on Cloud TPU, GKE, SLURM and Open MPI they find each other.
"""

from etils import epath

from can_jax.checkpoint.resume import CHANGES
from can_jax.cli.command import Command
from can_jax.cli.job import Job
from can_jax.train.pretrain import pretrain
from can_jax.utils.errors import UserError

COMMAND = Command(__doc__)
FLAGS = COMMAND.flags
_CONFIG = FLAGS.recipe("recipe")
_WORKDIR = FLAGS.path("workdir", "The run directory, one for all hosts; may be gs://…")
_PROFILE = FLAGS.switch("profile", False, "Trace a few steps for TensorBoard's profiler.")
_DUMP_HLO = FLAGS.switch("dump_hlo", False, "Write the compiled train step to hlo.txt.")
_ALLOW_CHANGES = FLAGS.items(
    "allow_changes",
    [],
    f"Settings that a resume may change, with commas between: {', '.join(CHANGES)}.",
)
JOB = Job(FLAGS)


@COMMAND.runs
def main() -> None:
    """Pretrain as configured by the flags."""
    config = _CONFIG.read()
    if _WORKDIR.value is None:
        raise UserError("--workdir=DIR is missing: give the run directory")
    if unknown := [name for name in _ALLOW_CHANGES.value if name not in CHANGES]:
        raise UserError(f"--allow_changes={unknown[0]}: choose from {', '.join(CHANGES)}")
    JOB.join()
    workdir = epath.Path(_WORKDIR.value)
    options = {"profile": _PROFILE.value, "dump_hlo": _DUMP_HLO.value}
    pretrain(config, workdir, _CONFIG.overrides, _ALLOW_CHANGES.value, **options)
