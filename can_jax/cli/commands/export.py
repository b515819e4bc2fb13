"""`python -m can_jax.export --checkpoint=RUN --format=FORMAT --output=DIR [--contents=full]`

Exports the weights of a run in the format timm, huggingface, big_vision, safetensors, stablehlo or
onnx. RUN can also be an export, or weights of another library. The command verifies the exported
files in a temporary directory, and then renames the directory to DIR. Independent code, and the
target library if it is installed, must reproduce the outputs of the run's model from the exported
files. The file `manifest.json` in DIR holds the numerical errors of the verification, and the facts
required to use the weights, such as the normalization of images. The file `README.md` in DIR is a
model card; `--results=OUT1,OUT2` adds the results of evaluations. `--push=hf://user/name` uploads
DIR to the Hugging Face Hub.
"""

from etils import epath

from can_jax.checkpoint.run_directory import step_path
from can_jax.cli.command import Command
from can_jax.export.formats import FORMATS
from can_jax.export.model import Given
from can_jax.export.model_card import Statement
from can_jax.export.write import export_run
from can_jax.monitoring.console import fact_table, plain_console
from can_jax.utils.errors import UserError
from can_jax.utils.progress import phase
from can_jax.weights.library_configs import FORMS

COMMAND = Command(__doc__)
FLAGS = COMMAND.flags
_CHECKPOINT = FLAGS.path(
    "checkpoint",
    "The weights: a run directory, an export, a file or folder of weights, or can-cifar10.",
)
_STEP = FLAGS.integer(
    "step", None, "The step of the run's checkpoint to use; by default the latest.", 0
)
_FORMAT = FLAGS.choice("format", None, list(FORMATS), "The format to export to, such as timm.")
_CONTENTS = FLAGS.choice(
    "contents",
    None,
    ["encoder", "full", "classifier"],
    "The part of the model to export; by default the classifier of a fine-tuned run, else the "
    "encoder.",
)
_RESULTS = FLAGS.paths(
    "results", "Directories of evaluations to list on the model card, separated by commas."
)
_OUTPUT = FLAGS.path("output", "The directory to create.")
_LICENSE = FLAGS.text(
    "license", None, "The license that the model card states for the weights, such as apache-2.0."
)
_DATA = FLAGS.text("data", None, "The model card's description of the training data.")
_PUSH = FLAGS.text("push", None, "The Hugging Face repository to upload to, as hf://user/name.")
_HEADS = FLAGS.integer(
    "heads", None, "The number of attention heads, if the weights do not state this number."
)
_GELU = FLAGS.choice(
    "gelu",
    None,
    list(FORMS),
    "The form of the GELU activation, if the weights do not state this form.",
)
_MEAN = FLAGS.items(
    "mean",
    None,
    "The mean of each channel of images in [0, 1], separated by commas, if the weights do not "
    "state the means.",
)
_STD = FLAGS.items(
    "std",
    None,
    "The standard deviation of each channel of images in [0, 1], separated by commas, if the "
    "weights do not state the standard deviations.",
)


def _numbers(name: str, words: list[str] | None) -> list[float] | None:
    try:
        return None if words is None else [float(word) for word in words]
    except ValueError:
        raise UserError(
            f"--{name}={','.join(words or [])}: give numbers separated by commas"
        ) from None


@COMMAND.runs
def main() -> None:
    """Export the weights, and print the numerical errors that the verification measured."""
    if _CHECKPOINT.value is None:
        raise UserError("--checkpoint=DIR is missing: give a run directory")
    if _FORMAT.value is None:
        raise UserError(f"--format is missing: choose one of {', '.join(FORMATS)}")
    if _OUTPUT.value is None:
        raise UserError("--output=DIR is missing: give the directory to create")
    output = epath.Path(_OUTPUT.value)
    results = _RESULTS.value or []
    checkpoint = step_path(_CHECKPOINT.value, _STEP.value)
    mean, std = _numbers("mean", _MEAN.value), _numbers("std", _STD.value)
    with phase("writing and verifying the export", _FORMAT.value):
        manifest = export_run(
            checkpoint, _FORMAT.value, output, _CONTENTS.value, results,
            given=Given(_HEADS.value, mean, std, gelu=_GELU.value), push=_PUSH.value,
            statement=Statement(_LICENSE.value, _DATA.value),
        )  # fmt: skip
    facts = {
        f"largest error, {name}": f"{e:.1e}"
        for name, e in manifest["checked"]["largest_error"].items()
    }
    for name, levels in manifest["checked"].get("preprocessing", {}).items():
        facts[f"largest pixel difference, {name}"] = f"{levels} of 255"
    names = ", ".join(sorted(path.name for path in output.iterdir()))
    facts |= {"files": names, "directory": str(output)}
    plain_console(width=120, soft_wrap=True, highlight=False).print(fact_table("Exported", facts))
