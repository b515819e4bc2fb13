"""The writer of an export: weights, manifest and model card, renamed into place once verified."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import jax
from etils import epath

from can_jax import __version__
from can_jax.config.resolve import to_json
from can_jax.export.formats import FORMATS
from can_jax.export.model import Model, open_model
from can_jax.export.model_card import card_of, results_of
from can_jax.export.usage import run_snippets
from can_jax.export.verify import check
from can_jax.utils.errors import UserError


def export_run(
    checkpoint: str, format: str, output: epath.Path, contents: str, results: Sequence[str] = ()
) -> dict[str, Any]:
    """Export the weights of a run.

    The files are written to a temporary directory, which is removed on failure.

    Args:
        checkpoint: The path of the run directory.
        format: The name of the format, a key of `FORMATS`.
        output: The directory to create.
        contents: The part to export, ``encoder`` or ``full``.
        results: Directories of evaluations of these weights, for the model card.

    Returns:
        The manifest.

    Raises:
        UserError: The run cannot be read, the directory exists, or the verification failed.
    """
    if output.exists():
        raise UserError(f"--output={output} already exists")
    model = open_model(checkpoint)
    measured = results_of(model, list(results))
    folder = output.with_name(f"{output.name}.tmp")
    if folder.exists():
        folder.rmtree()
    folder.mkdir(parents=True)
    try:
        manifest = _write(model, format, contents, folder, measured)
        folder.rename(output)
    except BaseException:
        if folder.exists():
            folder.rmtree()
        raise
    return manifest


def _write(
    model: Model, format: str, contents: str, folder: epath.Path, results: list[dict[str, Any]]
) -> dict[str, Any]:
    """Write and verify the contents of an export: weights, `manifest.json` and `README.md`.

    Returns:
        The manifest.

    Raises:
        UserError: The format does not fit the model, or the verification failed.
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
    # The snippets call `can_jax.load`, which needs the manifest, so it is written before they run.
    manifest_path = folder / "manifest.json"
    manifest_path.write_text(json.dumps(manifest, indent=2) + "\n")
    manifest["usage"] = run_snippets(model, format, contents, folder)
    manifest_path.write_text(json.dumps(manifest, indent=2) + "\n")
    (folder / "README.md").write_text(card_of(model, format, contents, manifest, results))
    return manifest
