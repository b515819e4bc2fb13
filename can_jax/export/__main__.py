"""`python -m can_jax.export --checkpoint=RUN --format=FORMAT --output=DIR [--contents=full]`

Writes the weights of a run for another library: timm, huggingface, big_vision, safetensors,
stablehlo or onnx. What was written is read again by other code and compared with the run, before it
gets its name; `manifest.json` says how near it came, and what a user of the weights has to know,
and `README.md` is a model card, with the results of `--results=OUT1,OUT2` if there are any.
"""

import hashlib
import json
from typing import Any

import jax
from absl import flags
from etils import epath

from can_jax import __version__
from can_jax.cli import app as command
from can_jax.cli.options import define_path, define_paths
from can_jax.config.resolve import to_json
from can_jax.export.formats import FORMATS
from can_jax.export.model import Model, open_model
from can_jax.export.model_card import card_of, results_of
from can_jax.export.usage import run_snippets
from can_jax.export.verify import check
from can_jax.monitoring.console import fact_table, plain_console
from can_jax.utils.errors import UserError

_CHECKPOINT = define_path("checkpoint", "A run directory.")
_FORMAT = flags.DEFINE_enum("format", None, list(FORMATS), "What is written.")
_CONTENTS = flags.DEFINE_enum("contents", "encoder", ["encoder", "full"], "How much of the model.")
_RESULTS = define_paths(
    "results", "Directories of evaluations of these weights, for the model card."
)
_OUTPUT = define_path("output", "The directory to make.")


def write(
    model: Model, format: str, contents: str, folder: epath.Path, results: list[dict[str, Any]]
) -> dict[str, Any]:
    """Fill the directory of an export: weights, `manifest.json`, `README.md`.

    Returns:
        The manifest.

    Raises:
        UserError: the format does not fit the model, or what was written is not what it should be.
    """
    file = FORMATS[format](model, contents, folder)
    written = sorted(folder.iterdir())
    manifest: dict[str, Any] = {
        "format": format,
        "contents": contents,
        "model": model.facts(),
        "config": json.loads(to_json(model.config)),
        "checked": check(model, format, contents, folder, file),
        "sha256": {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in written},
        "written_by": f"can_jax {__version__}, jax {jax.__version__}",
    }
    place = folder / "manifest.json"  # which `can_jax.load` wants, and so the lines that are run
    place.write_text(json.dumps(manifest, indent=2) + "\n")
    manifest["usage"] = run_snippets(model, format, contents, folder)
    place.write_text(json.dumps(manifest, indent=2) + "\n")
    (folder / "README.md").write_text(card_of(model, format, contents, manifest, results))
    return manifest


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
    results = results_of(model, _RESULTS.value or [])
    folder = output.with_name(f"{output.name}.tmp")
    if folder.exists():
        folder.rmtree()
    folder.mkdir(parents=True)
    try:
        manifest = write(model, _FORMAT.value, _CONTENTS.value, folder, results)
        folder.rename(output)
    except BaseException:
        if folder.exists():
            folder.rmtree()
        raise
    facts = {
        f"largest error, {name}": f"{e:.1e}"
        for name, e in manifest["checked"]["largest_error"].items()
    }
    names = ", ".join(sorted(path.name for path in output.iterdir()))
    facts |= {"files": names, "directory": str(output)}
    plain_console(width=120, soft_wrap=True, highlight=False).print(fact_table("Exported", facts))


if __name__ == "__main__":
    command.run(main, __doc__)
