"""`python -m can_jax.export --checkpoint=RUN --format=FORMAT --output=DIR [--contents=full]`

Writes the weights of a run for another library: timm, huggingface, big_vision, safetensors or
stablehlo. What was written is read again by other code and compared with the run, before it gets
its name; `manifest.json` says how near it came, and what a user of the weights has to know.
"""

import hashlib
import json

import jax
from absl import flags
from etils import epath
from rich.console import Console

from can_jax import __version__, command
from can_jax.errors import UserError
from can_jax.export.checking import check
from can_jax.export.formats import FORMATS
from can_jax.export.model import open_model
from can_jax.observe.console import fact_table

_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "A run directory.")
_FORMAT = flags.DEFINE_enum("format", None, list(FORMATS), "What is written.")
_CONTENTS = flags.DEFINE_enum("contents", "encoder", ["encoder", "full"], "How much of the model.")
_OUTPUT = flags.DEFINE_string("output", None, "The directory to make.")


def main() -> None:
    """Read, write, prove, name."""
    if _CHECKPOINT.value is None:
        raise UserError("--checkpoint=DIR is missing: a run directory")
    if _FORMAT.value is None:
        raise UserError(f"--format is missing: one of {', '.join(FORMATS)}")
    if _OUTPUT.value is None:
        raise UserError("--output=DIR is missing: the directory to make")
    output = epath.Path(_OUTPUT.value)
    if output.exists():
        raise UserError(f"--output={output} is there already")
    model = open_model(_CHECKPOINT.value)
    folder = output.with_name(f"{output.name}.tmp")
    if folder.exists():
        folder.rmtree()
    folder.mkdir(parents=True)
    try:
        file = FORMATS[_FORMAT.value](model, _CONTENTS.value, folder)
        checked = check(model, _FORMAT.value, _CONTENTS.value, folder, file)
        manifest = {
            "format": _FORMAT.value,
            "contents": _CONTENTS.value,
            "model": model.facts(),
            "checked": checked,
            "sha256": {
                path.name: hashlib.sha256(path.read_bytes()).hexdigest()
                for path in sorted(folder.iterdir())
            },
            "written_by": f"can_jax {__version__}, jax {jax.__version__}",
        }
        (folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
        folder.rename(output)
    except BaseException:
        if folder.exists():
            folder.rmtree()
        raise
    facts = {f"largest error, {name}": f"{e:.1e}" for name, e in checked["largest_error"].items()}
    names = ", ".join(sorted(path.name for path in output.iterdir()))
    facts |= {"files": names, "directory": str(output)}
    Console(width=120, soft_wrap=True, highlight=False).print(fact_table("Exported", facts))


if __name__ == "__main__":
    command.run(main, __doc__)
