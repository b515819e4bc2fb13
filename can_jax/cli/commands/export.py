"""`python -m can_jax.export --checkpoint=RUN --format=FORMAT --output=DIR [--contents=full]`

Exports the weights of a run to another library: timm, huggingface, big_vision, safetensors,
stablehlo or onnx. Before the directory gets its name, other code reads the files and compares their
outputs with the run. `manifest.json` holds the errors of that comparison and the facts required to
use the weights. `README.md` is a model card, with the results of `--results=OUT1,OUT2` if given.
"""

from etils import epath

from can_jax.checkpoint.run_directory import step_path
from can_jax.cli.command import Command
from can_jax.export.formats import FORMATS
from can_jax.export.write import export_run
from can_jax.monitoring.console import fact_table, plain_console
from can_jax.utils.errors import UserError

COMMAND = Command(__doc__)
FLAGS = COMMAND.flags
_CHECKPOINT = FLAGS.path("checkpoint", "A run directory.")
_STEP = FLAGS.integer("step", None, "The step of the run's checkpoint; by default the latest.", 0)
_FORMAT = FLAGS.choice("format", None, list(FORMATS), "The format of the export.")
_CONTENTS = FLAGS.choice(
    "contents", "encoder", ["encoder", "full"], "The part of the model to export."
)
_RESULTS = FLAGS.paths(
    "results", "Evaluation directories whose results the model card lists, with commas between."
)
_OUTPUT = FLAGS.path("output", "The directory to create.")


@COMMAND.runs
def main() -> None:
    """Export the weights, and print the errors measured by the verification."""
    if _CHECKPOINT.value is None:
        raise UserError("--checkpoint=DIR is missing: give a run directory")
    if _FORMAT.value is None:
        raise UserError(f"--format is missing: choose one of {', '.join(FORMATS)}")
    if _OUTPUT.value is None:
        raise UserError("--output=DIR is missing: give the directory to create")
    output = epath.Path(_OUTPUT.value)
    results = _RESULTS.value or []
    checkpoint = step_path(_CHECKPOINT.value, _STEP.value)
    manifest = export_run(checkpoint, _FORMAT.value, output, _CONTENTS.value, results)
    facts = {
        f"largest error, {name}": f"{e:.1e}"
        for name, e in manifest["checked"]["largest_error"].items()
    }
    names = ", ".join(sorted(path.name for path in output.iterdir()))
    facts |= {"files": names, "directory": str(output)}
    plain_console(width=120, soft_wrap=True, highlight=False).print(fact_table("Exported", facts))
