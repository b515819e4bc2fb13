"""`python -m can_jax.main --config=RECIPE --workdir=DIR [--config.key=value …]`

Pretrains as the recipe says, into the run directory. The same command again goes on from the newest
checkpoint. Any key of the recipe can be set on the command line. On several hosts the same command
runs on each; on Cloud TPU, GKE, SLURM and Open MPI they find each other.
"""

from absl import flags
from etils import epath

from can_jax.checkpoint.resume import CHANGES
from can_jax.cli import app as command
from can_jax.cli import job
from can_jax.cli.options import define_path, define_recipe, demand_recipe, overrides
from can_jax.train.pretrain import pretrain
from can_jax.utils.errors import UserError

_CONFIG = define_recipe("recipe")
_WORKDIR = define_path("workdir", "The run directory, one for all hosts; may be gs://…")
_PROFILE = flags.DEFINE_bool("profile", False, "Trace a few steps for TensorBoard's profiler.")
_DUMP_HLO = flags.DEFINE_bool("dump_hlo", False, "Write the compiled train step to hlo.txt.")
_ALLOW_CHANGES = flags.DEFINE_list(
    "allow_changes", [], f"What a resume may change, with commas between: {', '.join(CHANGES)}."
)
flags.adopt_module_key_flags(job)


def main() -> None:
    """Flags to config to pretrain."""
    config = demand_recipe(_CONFIG.value, "recipe")
    if _WORKDIR.value is None:
        raise UserError("--workdir=DIR is missing: say where the run may write")
    if unknown := [name for name in _ALLOW_CHANGES.value if name not in CHANGES]:
        raise UserError(f"--allow_changes={unknown[0]}: give some of {', '.join(CHANGES)}")
    job.join()
    workdir = epath.Path(_WORKDIR.value)
    options = {"profile": _PROFILE.value, "dump_hlo": _DUMP_HLO.value}
    pretrain(config, workdir, overrides(), _ALLOW_CHANGES.value, **options)


if __name__ == "__main__":
    command.run(main, __doc__)
